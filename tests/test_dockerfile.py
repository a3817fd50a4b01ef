"""The Dockerfile copies what there is, installs what pyproject.toml has, and runs without root."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def steps() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and what follows them, lines joined."""
    lines = [
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")
    ]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(kind, rest) for kind, _, rest in (one.partition(" ") for one in text.splitlines())]


def all_of(kind: str) -> list[str]:
    return [rest for one, rest in steps() if one == kind]


def in_context(path: str) -> bool:
    """Whether ``.dockerignore`` lets a path of the checkout into the build."""
    lines = [
        line for line in (ROOT / ".dockerignore").read_text().split() if not line.startswith("#")
    ]
    kept = False
    for line in lines:
        pattern = line.removeprefix("!")
        if any(fnmatch.fnmatch(part, pattern) for part in [path, *map(str, Path(path).parents)]):
            kept = line.startswith("!")
    return kept


def copied(into: Path) -> None:
    """Does what the COPY instructions do."""
    for rest in all_of("COPY"):
        *sources, target = shlex.split(rest)
        for source in sources:
            path = ROOT / source
            if path.is_dir():
                shutil.copytree(path, into / target, dirs_exist_ok=True)
            else:
                place = into / target / path.name if target.endswith("/") else into / target
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)


def test_what_it_copies_is_there() -> None:
    for rest in all_of("COPY"):
        *sources, _ = shlex.split(rest)
        assert [one for one in sources if not ((ROOT / one).exists() and in_context(one))] == []


def test_the_python_is_one_that_autotimm_takes() -> None:
    [image] = all_of("FROM")
    found = re.fullmatch(r"python:(3\.\d+)-slim", image)
    assert found
    least = PROJECT["requires-python"].removeprefix(">=")
    assert [*map(int, found[1].split("."))] >= [*map(int, least.split("."))]


def test_the_extras_exist() -> None:
    [extras] = re.findall(r"pip install [^\n]*'\.\[([\w,]+)\]'", "\n".join(all_of("RUN")))
    assert {*extras.split(",")} <= PROJECT["optional-dependencies"].keys()


def test_the_command_is_ours_and_its_user_is_not_root() -> None:
    [entry] = all_of("ENTRYPOINT")
    assert json.loads(entry) == ["autotimm"] and "autotimm" in PROJECT["scripts"]
    user = all_of("USER")[-1]
    assert user not in ("root", "0")
    assert re.search(rf"useradd .*--uid [1-9]\d* {user}\b", "\n".join(all_of("RUN")))
    kinds = [kind for kind, _ in steps()]
    assert kinds.index("USER") > max(n for n, kind in enumerate(kinds) if kind == "RUN")


@pytest.mark.parametrize("path", [".git/config", ".venv/bin/python", "runs/a.ckpt", "shards/x.tar"])
def test_what_lies_around_stays_outside(path: str) -> None:
    assert not in_context(path)
    assert in_context("launch/finetune.yaml") and in_context("shards/sample/manifest.json")


@pytest.mark.slow
def test_what_is_copied_makes_a_package_that_runs(tmp_path: Path) -> None:
    """Its own files alone, as in the image; what they need is there already."""
    copied(tmp_path / "opt")
    packages = tmp_path / "packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages]
    subprocess.run([*install, "."], cwd=tmp_path / "opt", check=True)
    shutil.rmtree(tmp_path / "opt/autotimm")
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "import autotimm; print(autotimm.__file__)\n"
        "from autotimm.cli.main import main; main()"
    )
    words = ["fit", "--config", "opt/launch/small_cpu.yaml", "--print_config"]
    done = subprocess.run(
        [sys.executable, "-c", code, packages, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(str(packages))
    assert "backbone: resnet18" in done.stdout
