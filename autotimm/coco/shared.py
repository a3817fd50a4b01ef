"""Image files that two splits of a folder share.

``autotimm shard`` reads every file and compares their bytes (``sharding/shared.py``). Where a
folder is only opened, this compares files of one name: their sizes, beginnings and ends.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from autotimm.coco.checks import Problems

SHARED = "image is in split "
"""How the kind of such a problem begins."""
_COMPARED = 8  # files of one name and size that a file is compared with
_BLOCK = 2**16  # bytes compared at the beginning and at the end


class Files(Protocol):
    """The images of a split; the methods are as of ``CocoIndex``."""

    def __len__(self) -> int: ...
    def image_file(self, i: int) -> str: ...
    def file_name(self, i: int) -> str: ...


def shared_kind(split: str) -> str:
    """The kind of problem that an image is in another split, too."""
    return f"{SHARED}{split!r}, too (kept)"


def shown_pair(name: str, other: str) -> str:
    """The name of an image, with its name in the other split if that is another one."""
    return name if name == other else f"{name}, there {other}"


def shared_files(images: Files, others: Files, split: str) -> Problems:
    """Counts the images that another split has, too: the same file, or an equal one of its name.

    Args:
        images: of a split.
        others: of the other split.
        split: the other's name.
    """
    found = Problems()
    there: dict[str, list[int]] = {}
    for k in range(len(others)):
        there.setdefault(os.path.basename(others.file_name(k)), []).append(k)  # noqa: PTH119
    sized: dict[str, dict[int, list[int]]] = {}
    for i in range(len(images)):
        name = os.path.basename(images.file_name(i))  # noqa: PTH119
        if name not in there:
            continue
        if name not in sized:
            sized[name] = _by_size(others, there[name])
        file = images.image_file(i)
        alike = sized[name].get(_size(file), [])[:_COMPARED]
        for k in alike:
            if _same(file, others.image_file(k)):
                found.add(shared_kind(split), shown_pair(images.file_name(i), others.file_name(k)))
                break
    return found


def _by_size(images: Files, places: list[int]) -> dict[int, list[int]]:
    """The images that can be found, by the size of their files."""
    found: dict[int, list[int]] = {}
    for place in places:
        size = _size(images.image_file(place))
        if size >= 0:
            found.setdefault(size, []).append(place)
    return found


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size  # noqa: PTH116 (a Path takes longer to make)
    except OSError:
        return -1  # reading the image says what is wrong with it


def _same(one: str, other: str) -> bool:
    """Whether two files of equal name and size begin and end alike.

    A training must not wait for its data to be read as a whole before the first step.
    """
    try:
        if Path(one).samefile(other):
            return True
        with Path(one).open("rb") as first, Path(other).open("rb") as second:
            if first.read(_BLOCK) != second.read(_BLOCK):
                return False
            for file in (first, second):
                file.seek(max(0, file.seek(0, os.SEEK_END) - _BLOCK))
            return first.read() == second.read()
    except OSError:
        return False
