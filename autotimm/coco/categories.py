"""The classes of a COCO file, and how its other entries may name them.

Invariants: each class has an id of its own, an integer of 64 bits; at least one is there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from autotimm.coco.checks import Problems, is_text
from autotimm.coco.flags import is_deleted
from autotimm.coco.ids import Key, free_ids, given_id, id_key
from autotimm.structures import InputError, brief


@dataclass(frozen=True, slots=True)
class Category:
    """A class of objects, under the dataset's own id, or under a number in its place.

    Attributes:
        given_id: the dataset's own id, where that is no whole number of 64 bits.
        frequency: LVIS' letter r, c or f.
    """

    id: int
    name: str
    supercategory: str = ""
    given_id: str | float | None = None
    frequency: str = ""


class CategoryIds(NamedTuple):
    """How annotations may name a category.

    Attributes:
        ids: by the key of its id in the file.
        names: its key by its name, where that is no other's, nor a key.
    """

    ids: dict[Key | None, int]
    names: dict[str | Key | None, Key]

    @classmethod
    def of(cls, categories: Sequence[Category]) -> CategoryIds:
        """Of categories as ``read_categories`` returns them."""
        ids: dict[Key | None, int] = {}
        names: dict[str | Key | None, Key] = {}
        all_names = Counter(one.name.strip() for one in categories)
        for one in categories:
            key = one.id if one.given_id is None else id_key(one.given_id, exact=True)
            assert key is not None  # it was read by its key
            ids[key] = one.id
            if all_names[one.name.strip()] == 1:
                names[one.name.strip()] = key
        return cls(ids, {name: key for name, key in names.items() if name not in ids})

    def find(self, given: Any, exact: bool) -> tuple[Key | None, bool]:
        """Returns the key of a ``category_id``, and whether this is the category's name."""
        key = id_key(given, exact)
        if key in self.ids or key not in self.names:
            return key, False
        return self.names[key], True

    def number(self, given: Any, exact: bool) -> int:
        """Returns the id of the category of an annotation that is known to have one."""
        number = self.ids.get(given) if type(given) is int else None
        if number is None:
            key, _ = self.find(given, exact)
            assert key is not None
            number = self.ids[key]
        return number


def read_categories(
    entries: Iterable[Any], file: Path, problems: Problems | None = None, exact: bool = True
) -> list[Category]:
    """Returns the categories by id.

    Raises:
        InputError: there is none, or one cannot be distinguished from the others.
        InexactIdError: ``exact`` has to be True for this file.
    """
    found: dict[Key, Category] = {}
    for position, entry in enumerate(entries):
        where = f"{file}: categories[{position}]"
        if not isinstance(entry, dict):
            raise InputError(f"{where} is not an object")
        key, name = id_key(entry.get("id"), exact), entry.get("name")
        if key is None:
            raise InputError(f"{where} has no 'id', a number or text")
        if type(name) in (int, float):  # digits, years
            name, kind = str(name), "category's name is a number (taken as text)"
            if problems is not None:
                problems.add(kind, f"{name} (id {key})")
        if not is_text(name):
            raise InputError(f"{where} (id {key}) has no 'name' that is text")
        if key in found and found[key].name == name:
            if problems is not None:
                problems.add("category is listed twice (taken once)", f"{name} (id {key})")
            continue
        if key in found:
            raise InputError(f"{where} '{name}' has id {key}, which '{found[key].name}' has")
        if is_deleted(entry) and problems is not None:
            problems.add("category is marked as deleted (kept, as a class)", f"{name} (id {key})")
        supercategory, frequency = (
            one if is_text(one) else "" for one in map(entry.get, ("supercategory", "frequency"))
        )
        if isinstance(key, int):
            found[key] = Category(key, name, supercategory, None, frequency)
        else:
            if problems is not None:
                kind = "category id is not a whole number (numbered anew)"
                problems.add(kind, f"{name} (id {key})")
            found[key] = Category(0, name, supercategory, given_id(entry["id"]), frequency)
    if not found:
        raise InputError(f"{file}: 'categories' is empty: nothing to learn")
    if problems is not None:
        _count_odd_names(found.values(), problems)
    anew = [key for key in found if isinstance(key, str)]
    used = {key for key in found if isinstance(key, int)}
    for key, number in zip(anew, free_ids(used, len(anew)), strict=True):
        found[key] = replace(found[key], id=number)
    return sorted(found.values(), key=lambda one: one.id)


_IGNORED = {
    *("ignore", "ignored", "ignoreregion", "ignoreregions", "ignoredregion", "ignoredregions"),
    *("dontcare", "don'tcare"),
}


def _count_odd_names(categories: Iterable[Category], problems: Problems) -> None:
    """Counts names that tell of a class that was not meant to be one.

    Those that are one but for case, blanks and marks between words: exports whose labels were typed
    by hand or merged have "Car" and "car " for the same things. And the background, which is what
    no object covers: a class of that name is of semantic segmentation, or stands in for label 0.
    And regions to be ignored, a class in VisDrone's and KITTI's files: annotations with ignore: 1
    would be neither learnt nor punished.
    """
    seen: dict[str, Category] = {}
    for one in categories:
        bare = re.sub(r"[\s_-]+", "", one.name).casefold()
        if bare == "background":
            problems.add("category is called background (kept, as a class)", f"id {one.id}")
        if bare in _IGNORED:
            problems.add(
                "category is of regions to be ignored, by its name (kept, as a class; annotations "
                "with ignore: 1 are not trained on)",
                f"{brief(one.name)} (id {one.id})",
            )
        other = seen.setdefault(bare, one)
        if other is not one:
            shown = f"{brief(other.name)} and {brief(one.name)}"
            problems.add("category has about the name of another (kept, as a class)", shown)
