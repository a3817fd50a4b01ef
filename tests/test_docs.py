"""What docs/ names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_tests_that_the_docs_name_exist() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for file, test in re.findall(r"(test_\w+\.py)::(test_\w+)", page.read_text()):
            assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"


def test_every_detail_of_the_table_has_a_test() -> None:
    table, *_ = (ROOT / "docs/detection.md").read_text().partition("\n## ")
    rows = re.findall(r"^\| (\d+) \|(.*)$", table, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 19))
    assert all("::test_" in row for _, row in rows)
