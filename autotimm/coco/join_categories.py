"""The classes of several annotation files, or of several splits, as one list.

Invariants: classes are matched by their names; an id that is another class's is numbered anew, the
first file's never. What is changed is counted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from autotimm.coco.categories import Category
from autotimm.coco.checks import Problems
from autotimm.coco.ids import Key, id_key
from autotimm.structures import InputError


class HasCategories(Protocol):
    """An annotation file, as far as its classes go."""

    @property
    def categories(self) -> list[Category]: ...


def join_categories(
    parts: Sequence[HasCategories],
    files: Sequence[Path],
    problems: Problems,
    known: Sequence[Category],
) -> tuple[list[Category], list[dict[int, int]]]:
    """Returns the classes of all files, and for each file what its category ids become.

    Args:
        parts: the files' contents.
        files: their names, for examples of problems.
        problems: where what is changed is counted.
        known: the classes of other splits, whose ids a class of the same name takes.
    """
    classes = _Classes(parts, problems, known)
    maps = [classes.join(part, file) for part, file in zip(parts, files, strict=True)]
    used = {id_ for ids in maps for id_ in ids.values()}
    return [classes.by_id[id_] for id_ in sorted(used)], maps


def refuse_other_classes(
    parts: Sequence[HasCategories], files: Sequence[Path], known: Sequence[Category]
) -> None:
    """Raises InputError if an id is another class's in the splits of ``known``.

    Those splits have no class of the same name, whose id it would take.
    """
    by_id = {one.id: one.name for one in known if one.given_id is None}
    names = {one.name for one in known}
    for part, file in zip(parts, files, strict=True):
        for one in part.categories:
            other = by_id.get(one.id, one.name)
            if one.given_id is None and one.name != other and one.name not in names:
                raise InputError(
                    f"{file}: category {one.id} is {one.name!r}, but {other!r} in another split: "
                    "give a class the same name in all splits, and another class another id"
                )


class _Classes:
    """The classes so far, by the ids that they have in the whole."""

    def __init__(
        self, parts: Sequence[HasCategories], problems: Problems, known: Sequence[Category]
    ) -> None:
        self.by_id = {category.id: category for category in known}
        self._problems = problems
        self._highest = max((c.id for part in parts for c in part.categories), default=0)
        # Of ids that are no whole numbers.
        self._keys: set[Key | None] = {
            id_key(one.given_id, exact=True) for one in known if one.given_id is not None
        }

    def join(self, part: HasCategories, file: Path) -> dict[int, int]:
        """Adds the classes of a file; returns what its category ids become."""
        ids: dict[int, int] = {}
        for category in part.categories:  # those of equal id and name first
            same = self.by_id.get(category.id)
            if same is not None and same.name == category.name:
                ids[category.id] = category.id
        taken = set(ids.values())
        for category in part.categories:
            if category.id not in ids:
                id_ = self._matched(category, taken, file)
                ids[category.id] = self._added(category, file) if id_ is None else id_
                taken.add(ids[category.id])
        return ids

    def _matched(self, category: Category, taken: Collection[int], file: Path) -> int | None:
        """The id of a class of the same name that no other class of the file has; else None."""
        same = (id_ for id_, one in self.by_id.items() if one.name == category.name)
        new = next((id_ for id_ in same if id_ not in taken), None)
        if new is None:
            return None
        # Numbers that stand for equal ids are ours, and the user has never seen them.
        if category.given_id is None or category.given_id != self.by_id[new].given_id:
            self._problems.add(
                "category has another id in another annotation file (matched by name)",
                f"'{category.name}' of {file.name} (id {category.id}, now {new})",
            )
        return new

    def _added(self, category: Category, file: Path) -> int:
        """Adds a class, with an id of its own, and returns that."""
        new, given = category.id, category.given_id
        if new in self.by_id:
            new = max(*self.by_id, self._highest) + 1
        key = None if given is None else id_key(given, exact=True)
        clash = new != category.id if key is None else key in self._keys
        if clash:
            given = None
            old = category.id if key is None else key
            self._problems.add(
                "category id is of another class in another annotation file (numbered anew)",
                f"'{category.name}' of {file.name} (id {old}, now {new})",
            )
        self.by_id[new] = replace(category, id=new, given_id=given)
        self._keys.add(key)
        return new
