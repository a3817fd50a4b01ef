"""A split of several annotation files: read as one.

Invariants: image and annotation ids are unique in the whole; ids that clash are numbered anew, the
first file's never; classes are matched by their names; an image file that several annotation files
describe is one image with the annotations of all. What is changed is counted.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from itertools import count
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from autotimm.coco.checks import RULES, Problems, Rules
from autotimm.coco.federated import FEDERATED
from autotimm.coco.ids import Key, id_key
from autotimm.coco.index import Category, CocoIndex, load, names_of
from autotimm.coco.join_categories import join_categories, refuse_other_classes
from autotimm.coco.layouts import Split
from autotimm.coco.merge import merged
from autotimm.structures import InputError, Record, is_trained_on

__all__ = ["Index", "JoinedIndex", "load_split"]


class Part(Protocol):
    """An annotation file that is joined to others; the methods are as of ``CocoIndex``."""

    categories: list[Category]
    problems: Problems

    def __len__(self) -> int: ...
    def image_id(self, i: int) -> int: ...
    def given_id(self, i: int) -> str | float | None: ...
    def image_file(self, i: int) -> str: ...
    def file_name(self, i: int) -> str: ...
    def size(self, i: int) -> tuple[int, int]: ...
    def annotation_ids(self) -> tuple[int, int]: ...
    def record(self, i: int, problems: Problems | None = None) -> Record: ...


P = TypeVar("P", bound=Part)


class Joined(Generic[P]):
    """The images of several annotation files.

    Args:
        parts: the files' contents, at least one.
        files: their names, for examples of problems.
        known: the classes of other splits, whose ids a class of the same name takes.

    Attributes:
        categories: of all files, sorted by id.
        problems: of all files, and what joining them changed.

    Raises:
        InputError: annotation ids clash and are too large to be numbered anew.
    """

    def __init__(
        self, parts: Sequence[P], files: Sequence[Path], known: Sequence[Category] = ()
    ) -> None:
        self.problems = Problems()
        for part in parts:
            self.problems.update(part.problems)
        self._parts = list(parts)
        self.categories, self._category_ids = join_categories(parts, files, self.problems, known)
        self._shifts = _shifts(parts, files, self.problems)
        # Of each image: (part, position in it), more than one where several files describe it.
        self._places: list[list[tuple[int, int]]] = []
        self._clashing: set[int] = set()  # images whose given id an image of an earlier file has
        self._ids = self._join_images(files)
        self._sizes = np.array(
            [self._parts[k].size(i) for (k, i), *_ in self._places], np.int64
        ).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._places)

    def image_file(self, i: int) -> str:
        """See ``CocoIndex``."""
        part, position = self._places[i][0]
        return self._parts[part].image_file(position)

    def file_name(self, i: int) -> str:
        """See ``CocoIndex``; the name is in the image folder of the image's own annotation file."""
        part, position = self._places[i][0]
        return self._parts[part].file_name(position)

    def size(self, i: int) -> tuple[int, int]:
        """See ``CocoIndex``."""
        width, height = self._sizes[i].tolist()
        return width, height

    def sizes(self) -> np.ndarray:
        """See ``CocoIndex``."""
        return self._sizes

    def image_id(self, i: int) -> int:
        """See ``CocoIndex``."""
        return self._ids[i]

    def record(self, i: int, problems: Problems | None = None) -> Record:
        """See ``CocoIndex``; an instance that two files have alike is there once, and counted."""
        records = [self._mapped(*place, problems) for place in self._places[i]]
        record = records[0] if len(records) == 1 else merged(records, problems)
        record["image_id"] = self._ids[i]
        if i in self._clashing:
            del record["given_id"]
        return record

    def _mapped(self, part: int, position: int, problems: Problems | None) -> Record:
        """One file's record of an image, with the annotation and category ids of the whole."""
        record, ids = self._parts[part].record(position, problems), self._category_ids[part]
        for one in (*record["annotations"], *record.get("unmasked", ())):
            one["id"] += self._shifts[part]
            one["category_id"] = ids[one["category_id"]]
        for key in FEDERATED:
            if key in record:
                record[key] = [ids[id_] for id_ in record[key]]
        return record

    def _join_images(self, files: Sequence[Path]) -> list[int]:
        """Fills ``_places`` and ``_clashing``, and returns the images' ids."""
        ids: dict[int, None] = {}  # ordered
        keys: set[Key | None] = set()  # of ids that are no whole numbers
        own = {part.image_id(i) for part in self._parts for i in range(len(part))}
        free = (id_ for id_ in count(max(own, default=0) + 1) if id_ not in own)
        if max(own, default=0) + len(own) >= 2**63:
            free = (id_ for id_ in count(1) if id_ not in own)
        slots: dict[str, int] = {}
        for k, part in enumerate(self._parts):
            for i in range(len(part)):
                name, file = part.file_name(i), os.path.normpath(part.image_file(i))
                shown = f"{name} of {files[k].name}"
                slot = slots.get(file)
                if slot is not None and self._places[slot][0][0] != k:
                    at, first = self._places[slot][0]
                    if self._parts[at].size(first) == part.size(i):
                        self._places[slot].append((k, i))
                        kind = "image is in several annotation files (annotations joined)"
                    else:
                        kind = "image has another size in another annotation file (left out)"
                    self.problems.add(kind, shown)
                    continue
                id_ = part.image_id(i)
                given = part.given_id(i)
                key = None if given is None else id_key(given, exact=True)
                clash = id_ in ids if key is None else key in keys
                if clash:
                    self.problems.add(
                        "image id is in several annotation files (numbered anew)",
                        f"{shown} (id {id_ if key is None else key})",
                    )
                    if key is not None:  # its number is its id from now on
                        self._clashing.add(len(self._places))
                keys.add(key)
                if id_ in ids:
                    id_ = next(free)
                ids[id_] = None
                slots.setdefault(file, len(self._places))
                self._places.append([(k, i)])
        return list(ids)


class JoinedIndex(Joined[CocoIndex]):
    """The images of several annotation files of a data set, with the methods of ``CocoIndex``."""

    def image_path(self, i: int) -> Path:
        """See ``CocoIndex``."""
        return Path(self.image_file(i))

    def used_ids(self) -> list[int]:
        """See ``CocoIndex``."""
        parts = zip(self._parts, self._category_ids, strict=True)
        return sorted({ids[id_] for part, ids in parts for id_ in part.used_ids()})

    def trained_ids(self, i: int, known: Collection[int] = ()) -> set[int]:
        """See ``CocoIndex``."""
        if len(self._places[i]) > 1:  # of what files have alike, the first one counts
            every = self.record(i)["annotations"]
            return {one["category_id"] for one in every if is_trained_on(one)} - {*known}
        (part, position), *_ = self._places[i]
        ids = self._category_ids[part]
        skipped = {own for own, id_ in ids.items() if id_ in known}
        return {ids[id_] for id_ in self._parts[part].trained_ids(position, skipped)}

    def untrained_ids(self) -> list[int]:
        """See ``CocoIndex``."""
        trained = set()
        for part, ids in zip(self._parts, self._category_ids, strict=True):
            trained |= {ids[id_] for id_ in {*part.used_ids()} - {*part.untrained_ids()}}
        return [id_ for id_ in self.used_ids() if id_ not in trained]

    def untrained(self) -> list[str]:
        """See ``CocoIndex``."""
        return names_of(self.untrained_ids(), self.categories)

    def ignored(self) -> int:
        """See ``CocoIndex``."""
        return sum(part.ignored() for part in self._parts)

    def annotation_bytes(self, i: int) -> int:
        """See ``CocoIndex``."""
        return sum(self._parts[part].annotation_bytes(at) for part, at in self._places[i])


Index = CocoIndex | JoinedIndex


def load_split(split: Split, rules: Rules = RULES, known: Sequence[Category] = ()) -> Index:
    """Reads the annotation files of a split and sees that its images are there.

    Args:
        split: what to read.
        rules: how boxes and crowds are taken.
        known: the classes of other splits. A class of the same name takes their id, which is
            counted as a problem.

    Raises:
        InputError: as from ``load``, the files cannot be joined, or an id is another class's in the
            other splits, which have none of that name.
    """
    indices = [load(file, folder, rules) for file, folder in split.sources]
    files = [file for file, _ in split.sources]
    refuse_other_classes(indices, files, known)
    if len(indices) == 1:
        _, (ids,) = join_categories(indices, files, Problems(), known)
        if all(old == new for old, new in ids.items()):
            return indices[0]
    return JoinedIndex(indices, files, known)


def _shifts(parts: Sequence[Part], files: Sequence[Path], problems: Problems) -> list[int]:
    """Returns what is added to the annotation ids of each file, so that none occurs twice."""
    spans: list[tuple[int, int]] = []
    shifts = []
    for part, file in zip(parts, files, strict=True):
        low, high = part.annotation_ids()
        shift = 0
        if low <= high:
            if any(low <= top and bottom <= high for bottom, top in spans):
                above = max(top for _, top in spans) + 1 - low
                below = min(bottom for bottom, _ in spans) - 1 - high
                shift = above if above + high < 2**63 else below
                if low + shift < -(2**63):
                    raise InputError(
                        f"{file}: its annotation ids clash with those of {files[0].name}, and are "
                        "too large to be numbered anew: number them from 1"
                    )
                problems.add("annotation ids clash between annotation files (shifted)", file.name)
            spans.append((low + shift, high + shift))
        shifts.append(shift)
    return shifts
