"""Ids that are no whole numbers of 64 bits: what they are looked up by, and their new numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import Any

from autotimm.coco.checks import as_id, is_text
from autotimm.structures import InputError, brief

Key = int | str
"""What an id is looked up by: the number that it is, however it is written, or else its text."""


class InexactIdError(ValueError):
    """An id may have lost digits, as the quick parser makes a float of more than 64 bits."""


def id_key(value: Any, exact: bool) -> Key | None:
    """Returns what an id is looked up by; None if this is no id.

    Args:
        value: as the file has it.
        exact: whether whole numbers of more than 64 bits were kept (``jsontext.parse``).

    Raises:
        InexactIdError: they were not, and this one has lost digits.
    """
    number = as_id(value)
    if number is not None:
        return number
    if type(value) is float and math.isfinite(value):
        if abs(value) >= 2**63 and not exact:
            raise InexactIdError
        return repr(value)
    if type(value) is int:
        return str(value)
    return value.strip() or None if is_text(value) else None


def spelled(value: Any) -> str | None:
    """Returns the text of an id that is a whole number written in another way than Python's, as
    ``000007``; None for all others. Such a text may as well be the name of an image file."""
    number = as_id(value) if isinstance(value, str) else None
    return None if number is None or value.strip() == str(number) else value.strip()


def refuse_one_number(one: Any, other: Any, name: str) -> None:
    """Refuses a file with two ids that differ, but are one number: ``7`` and ``"007"``.

    Args:
        one: an id, as the file has it.
        other: another with the same ``id_key``.
        name: of the file, or of the folder of its images.
    """
    if spelled(one) != spelled(other):
        raise InputError(
            f"{name}: the image ids {brief(one)} and {brief(other)} are one number: write one of "
            "them in another way"
        )


def given_id(value: Any) -> str | float:
    """An id that got a new number, as records keep it: JSON of 64 bits has no larger numbers."""
    return str(value) if type(value) is int else value


def free_ids(used: set[int], count: int) -> list[int]:
    """Returns ids that are not used, of 64 bits: those above the largest, or else the first."""
    above = max(used, default=0) + 1
    if above + count <= 2**63:
        return list(range(above, above + count))
    return list(islice((id_ for id_ in range(1, 2**63) if id_ not in used), count))


class FileNames:
    """Images by what an ``image_id`` may call them in place of their id: their file's name, with
    more or fewer folders in front, with or without its extension, where that is one image's alone.

    Args:
        named: each image's name as the file has it, and its place; asked for at the first look-up.
            Images that are not used belong to them, or their annotations would go to others.
    """

    def __init__(self, named: Callable[[], Iterable[tuple[str, int]]]) -> None:
        self._named = named
        self._whole: dict[str, int | None] | None = None
        self._ends: dict[str, int | None] = {}  # whole names, too; None where several end so

    def find(self, image_id: Key | None) -> int | None:
        """Returns the place of the image of this name; None if there is none or several.

        Of two paths, one must end as the other: ``train/1.jpg`` is not ``val/1.jpg``.
        """
        if not isinstance(image_id, str):
            return None
        if self._whole is None:
            self._whole = self._read()
        name = "/".join(_parts(image_id))
        if name in self._whole:
            return self._whole[name]
        if name in self._ends:
            return self._ends[name]
        return next((self._whole[end] for end in _endings(name) if end in self._whole), None)

    def _read(self) -> dict[str, int | None]:
        whole: dict[str, int | None] = {}
        for given, place in self._named():
            path = "/".join(_parts(given))
            stem = os.path.splitext(path)[0]  # noqa: PTH122
            for name in dict.fromkeys((path, stem)) if path else ():
                whole[name] = None if name in whole else place
                for end in (name, *_endings(name)):
                    self._ends[end] = None if end in self._ends else place
        return whole


def _parts(path: str) -> list[str]:
    return [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]


def _endings(path: str) -> Iterator[str]:
    """Yields a path without its first folder, its first two, ..., down to the file alone."""
    while "/" in path:
        path = path.partition("/")[2]
        yield path


def shifted(unknown: set[int], used: set[int], known: Collection[Key | None]) -> str | None:
    """Says that category ids are off by one, if all of them are ids of categories once one is added
    or taken away. Converters make this mistake; it gives each class its neighbour's name.

    Args:
        unknown: ids in annotations that no category has.
        used: ids in annotations that a category has.
        known: ids of the categories.

    Returns:
        The kind of the problem; None if they are not, or if no id is unknown.
    """
    for step, here, there in ((1, 0, 1), (-1, 1, 0)):
        if unknown and all(id_ + step in known for id_ in unknown | used):
            return (
                f"category_id counts from {here} and categories from {there}, it seems: then each "
                "class has its neighbour's annotations (taken as they are)"
            )
    return None
