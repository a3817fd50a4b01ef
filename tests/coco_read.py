"""Reads a COCO folder that a test makes, and says what was odd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coco_folder import write

from autotimm.coco import index as coco
from autotimm.coco.checks import Problems
from autotimm.structures import Record

NAN = float("nan")


def load(root: Path, **content: Any) -> coco.CocoIndex:
    write(root, **content)
    return coco.load(root / "annotations" / "instances_train.json", root / "train")


def read(root: Path, **content: Any) -> tuple[list[Record], dict[str, int]]:
    """Loads a folder made of ``content``: all records, and what was odd."""
    index = load(root, **content)
    problems = Problems()
    problems.update(index.problems)
    records = [index.record(i, problems) for i in range(len(index))]
    assert [index.record(i) for i in range(len(index))] == records, "a second look changes nothing"
    return records, problems.counts
