"""Data sets of formats other than COCO's: recognised, and which program converts them.

The commands are those of the tools' newest versions in November 2026: Datumaro 1.12, labelme2coco
0.2, supervision 0.27.
"""

from __future__ import annotations


from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from autotimm.coco.peek import peek

_FILES = 200  # of each folder are looked at
_HEAD = 4096  # bytes of a file


def recognise(root: Path) -> str | None:
    return None
