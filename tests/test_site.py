"""The documentation builds as a site; broken links, anchors and missing docstrings fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "docs", "findings", "launch", "shards", "slurm")


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", site]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_site_builds_and_fetches_nothing(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*.html")}
    docs = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages.keys() >= {"index.html", *(f"{name}/index.html" for name in docs)}
    for name, path in pages.items():
        loaded = re.findall(r'<(?:script|img|iframe)\b[^>]*\bsrc="([^"]+)"', path.read_text())
        loaded += re.findall(r'<link\b[^>]*\bhref="([^"]+)"', path.read_text())
        assert not [one for one in loaded if "//" in one], name
        root = tmp_path if name == "404.html" else path.parent
        local = [one.partition("?")[0].lstrip("/") for one in loaded if ":" not in one]
        assert [one for one in local if not (root / one).exists()] == [], name
    api = pages["api/index.html"].read_text()
    for name in ("InstanceSegmentor", "AutoTrainer", "load", "predict", "MetricConfig"):
        assert f'id="autotimm.{name}"' in api
    assert "peak learning rate" in api, "docstrings of the arguments"


def test_what_is_broken_fails(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("results", "sample", "__pycache__", "*.png")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copytree(ROOT / "benchmarks/results", tmp_path / "benchmarks/results")
    shutil.copytree(ROOT / "autotimm", tmp_path / "autotimm", ignore=ignored)
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mkdocs.yml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copy(ROOT / "docs/demo.png", tmp_path / "docs")
    load = tmp_path / "autotimm/tasks/load.py"
    load.write_text(
        re.sub(r'(def load\(.*?:\n)    """.*?"""\n', r"\1", load.read_text(), flags=re.S)
    )
    page = tmp_path / "docs/training.md"
    page.write_text(f"{page.read_text()}\n[a](none.md) [b](predicting.md#no-such-heading)\n")
    (tmp_path / "docs/lonely.md").write_text("# In no menu\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert "autotimm.tasks.load.load: no docstring" in done.stderr
    assert "none.md" in done.stderr and "no-such-heading" in done.stderr
    assert "lonely.md" in done.stderr
    assert len(re.findall("WARNING", done.stderr)) == 4, done.stderr
