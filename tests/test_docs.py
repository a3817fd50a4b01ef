"""What docs/ names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


PAGES = [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]


def test_tests_that_the_docs_name_exist() -> None:
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    for page in PAGES:
        for file, test in re.findall(r"(test_\w+\.py)::(test_\w+)", page.read_text()):
            assert f"\ndef {test}(" in files[file], f"{page.name}: {file}::{test}"


def test_paths_that_the_docs_name_exist() -> None:
    roots = [ROOT, ROOT / "autotimm", ROOT / "tests"]
    for page in [*PAGES[:1], ROOT / "docs/architecture.md"]:
        named = re.findall(r"`((?:[\w.]+/)+[\w.]*|\w+\.py)`", page.read_text())
        assert len(named) > 10
        for path in named:
            if path.startswith("../"):  # beside the checkout
                continue
            assert any((root / path).exists() for root in roots), f"{page.name}: {path}"


def test_every_package_is_in_the_architecture() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    packages = {path.parent.name for path in (ROOT / "autotimm").glob("*/__init__.py")}
    assert {name for name in packages if f"`autotimm/{name}/`" not in text} == set()


def test_every_detail_of_the_table_has_a_test() -> None:
    table, *_ = (ROOT / "docs/detection.md").read_text().partition("\n## ")
    rows = re.findall(r"^\| (\d+) \|(.*)$", table, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 19))
    assert all("::test_" in row for _, row in rows)
