"""An annotation file and its images: read, checked, one record an image.

Invariants: what cannot be used is left out and counted by kind with examples, never lost silently;
every image file lies inside the image folder; ids are integers; masks are compressed RLEs of the
image's size. A record from here equals the one that a shard holds.

Boxes here are COCO's own x, y, w, h, and category ids the dataset's.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from autotimm.coco.annotations import AnnotationIndex, index_annotations
from autotimm.coco.categories import Category, CategoryIds, read_categories
from autotimm.coco.checks import RULES, Problems, Rules, as_id
from autotimm.coco.ids import FileNames, InexactIdError
from autotimm.coco.jsontext import NotJSONError, Text, parse
from autotimm.coco.lists import ImageList, find_images, find_lists, named_slots
from autotimm.coco.truths import checked_annotations, trained_categories
from autotimm.structures import InputError, Record

__all__ = [
    "Category",
    "CocoIndex",
    "label_of",
    "load",
]

GROUP = "category without annotations for the others' group, as Roboflow's (kept; harmless)"
"""Roboflow's class 0, which does no harm."""


@dataclass
class CocoIndex:
    """The images of one split that can be used, in the file's order, and where in the file their
    annotations are: some 100 bytes an image and 16 an annotation, cheap to fork and to pickle.

    Attributes:
        categories: sorted by id.
        problems: what ``load`` found odd.
        image_folder: resolved; every image lies inside it.
    """

    categories: list[Category]
    problems: Problems
    image_folder: str
    _images: ImageList = field(repr=False)
    _annotations: AnnotationIndex = field(repr=False)
    _category_ids: CategoryIds = field(repr=False)
    _text: Text = field(repr=False)
    _rules: Rules
    _exact: bool  # see jsontext.parse

    def __len__(self) -> int:
        return len(self._images.names)

    def image_path(self, i: int) -> Path:
        """Returns where image ``i`` lies; ``load`` saw that this is inside the image folder."""
        return Path(self.image_file(i))

    def image_file(self, i: int) -> str:
        """Returns the same as text, for loops in which making a Path takes longer than the rest."""
        return f"{self.image_folder}/{self._images.names[i]}"

    def file_name(self, i: int) -> str:
        """Returns the name of image ``i`` in the image folder: the annotation file's, mended."""
        return self._images.names[i]

    def size(self, i: int) -> tuple[int, int]:
        """Returns width and height of image ``i`` in pixels, as its record has them."""
        width, height = self._images.sizes[i].tolist()
        return width, height

    def sizes(self) -> np.ndarray:
        """Returns width and height of all images, [n, 2] int64, pixels."""
        return self._images.sizes

    def image_id(self, i: int) -> int:
        """Returns the id of image ``i``."""
        return int(self._images.ids[i])

    def given_id(self, i: int) -> str | float | None:
        """Returns the file's own id of image ``i``, where that is no whole number of 64 bits."""
        return self._images.given_ids.get(i)

    def annotation_ids(self) -> tuple[int, int]:
        """Returns the smallest and the largest annotation id; 0 and -1 where there is none."""
        return self._annotations.span

    def used_ids(self) -> list[int]:
        """Returns the categories that have annotations."""
        return self._annotations.used

    def untrained_ids(self) -> list[int]:
        """Returns the categories that have annotations, all of them crowds or to be ignored."""
        return self._annotations.untrained

    def untrained(self) -> list[str]:
        """Returns the names of the same."""
        return names_of(self.untrained_ids(), self.categories)

    def ignored(self) -> int:
        """Returns how many annotations say ``ignore: 1``."""
        return self._annotations.ignored

    def annotation_bytes(self, i: int) -> int:
        """Returns about how many bytes the record of image ``i`` takes as JSON.

        An annotation is about as long there as in its file, without line ends and indents, and as
        the runs of its mask on top: some 250 bytes.
        """
        first, last = self._annotations.first[i : i + 2].tolist()
        text = self._annotations.dense * int(self._annotations.lengths[first:last].sum())
        return 100 + 250 * (last - first) + int(text)

    def record(self, i: int, problems: Problems | None = None) -> Record:
        """Makes the checked record of image ``i``: what a shard's ``<key>.json`` holds.

        Args:
            i: 0 to ``len(self) - 1``.
            problems: where annotations that are odd are counted; by default nowhere, as who reads a
                dataset epoch after epoch does not want to count them again.

        Raises:
            InputError: the annotation file has changed since it was loaded, or is gone.
        """
        problems = Problems() if problems is None else problems
        name, (width, height) = self._images.names[i], self.size(i)

        def odd(raw: Mapping[str, Any], kind: str) -> None:
            problems.add(kind, f"annotation {raw['id']} of {name}")

        raws = self._read(i)
        annotations, unmasked = checked_annotations(raws, height, width, odd, self._rules)
        record: Record = {
            "image_id": self.image_id(i),
            "file_name": name,
            "width": width,
            "height": height,
            "annotations": annotations,
        }
        if i in self._images.given_ids:
            record["given_id"] = self._images.given_ids[i]
        if unmasked:
            record["unmasked"] = unmasked
        if i in self._images.federated:
            record.update(self._images.federated[i])  # type: ignore[typeddict-item]
        return record

    def trained_ids(self, i: int, known: Collection[int] = ()) -> set[int]:
        """Returns the categories of which image ``i`` has an instance that is trained on.

        Args:
            i: 0 to ``len(self) - 1``.
            known: categories that are not looked for, which saves the time to check their masks.
        """
        width, height = self.size(i)
        return trained_categories(self._read(i), height, width, self._rules, known)

    def _read(self, i: int) -> list[dict[str, Any]]:
        """Reads the annotations of an image, ``id`` (made unique) and ``category_id`` integers."""
        places = self._annotations
        first, last = places.first[i : i + 2].tolist()
        if first == last:
            return []
        pieces = self._text.read_all(
            places.starts[first:last].tolist(), places.lengths[first:last].tolist()
        )
        try:
            raws: list[dict[str, Any]] = parse(b"[" + b",".join(pieces) + b"]", self._exact)
        except NotJSONError:
            raise self._text.fault() from None
        renumbered, categories = places.renumbered, self._category_ids
        for place, raw in enumerate(raws, first):
            id_, category_id = raw.get("id"), raw["category_id"]
            if type(id_) is not int or place in renumbered:  # few files have others
                new = renumbered.get(place)
                raw["id"] = as_id(id_) if new is None else new
            if type(category_id) is not int or category_id not in categories.ids:
                raw["category_id"] = categories.number(category_id, self._exact)
        return raws


def label_of(categories: Iterable[Category]) -> dict[int, int]:
    """Maps category ids to contiguous labels from 0, by sorted id, used or not."""
    return {id_: label for label, id_ in enumerate(sorted(c.id for c in categories))}


def shown_names(categories: Iterable[Category]) -> list[str]:
    """What to call each label: its category's name, with the id where several share that name."""
    categories = list(categories)
    names = [category.name for category in categories]
    return [
        f"{one.name} ({one.id})" if names.count(one.name) > 1 or not one.name else one.name
        for one in categories
    ]


def group_category(categories: Sequence[Category], used: Iterable[int]) -> Category | None:
    """Returns the category that Roboflow adds as the supercategory of the others, if there is one.

    It is the only one whose supercategory is "none", and has no annotations. It remains a class:
    without it every other class would have another label than in checkpoints trained before.

    Args:
        categories: of the file.
        used: ids of those that have annotations.
    """
    tops = [one for one in categories if one.supercategory == "none"]
    alone = len(tops) == 1 < len(categories) and tops[0].id not in used
    return tops[0] if alone else None


def names_of(ids: Iterable[int], categories: Sequence[Category]) -> list[str]:
    """Returns what to call the categories of these ids."""
    wanted = {*ids}
    names = zip(categories, shown_names(categories), strict=True)
    return [name for category, name in names if category.id in wanted]


def load(annotation_file: Path, image_folder: Path, rules: Rules = RULES) -> CocoIndex:
    """Reads a COCO annotation file and sees that its images are there.

    An image is opened only where the file lacks its size.

    Args:
        annotation_file: JSON, plain or packed by gzip or zip.
        image_folder: where the file's names are looked for.
        rules: how boxes and crowds are taken.

    Raises:
        InputError: nothing can go on: a file or folder is missing or unreadable, it is not COCO, it
            has no categories or some that share an id, or none of its images or annotations can be
            used.
    """
    if not Path(image_folder).is_dir():
        raise InputError(f"{image_folder}: no such folder, but {annotation_file} needs its images")
    text = Text(Path(annotation_file))
    collecting = gc.isenabled()
    gc.disable()  # millions of small objects, none of them garbage: collecting doubles the time
    try:
        try:
            return _load(text, Path(image_folder), rules, exact=False)
        except InexactIdError:
            return _load(text, Path(image_folder), rules, exact=True)
    except NotJSONError:
        raise text.fault() from None
    finally:
        if collecting:
            gc.enable()


def _load(text: Text, folder: Path, rules: Rules, exact: bool) -> CocoIndex:
    problems = Problems()
    if text.packed and not text.path.name.lower().endswith((".gz", ".zip")):
        problems.add(f"annotation file is packed by {text.packed} (unpacked)", text.path.name)
    lists = find_lists(text)
    entries = {
        key: chain.from_iterable(one.values(text, exact=exact)) for key, one in lists.items()
    }
    categories = read_categories(entries["categories"], text.path, problems, exact)
    category_ids = CategoryIds.of(categories)
    images, slots = find_images(entries["images"], folder, problems, category_ids, exact)
    if not images.names:
        why = "; ".join(problems.lines()) or (
            "it lists none: leave this split out (autotimm shard --splits; in training "
            "val_split=None)"
        )
        raise InputError(f"{text.path}: no image can be used: {why}")
    listed = lists["images"]
    names = FileNames(
        lambda: named_slots(chain.from_iterable(listed.values(text, exact=exact)), slots, exact)
    )
    annotations = index_annotations(
        text, lists["annotations"], slots, images, names, category_ids, problems, rules, exact
    )
    group = group_category(categories, annotations.used)
    if group is not None:
        problems.add(GROUP, f"{group.name} (id {group.id})")
    return CocoIndex(
        categories=categories,
        problems=problems,
        image_folder=os.path.realpath(folder),
        _images=images,
        _annotations=annotations,
        _category_ids=category_ids,
        _text=text,
        _rules=rules,
        _exact=exact,
    )
