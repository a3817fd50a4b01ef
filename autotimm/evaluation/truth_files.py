"""What is to be found, from annotation files without their images, or from the content of one.

Invariants: those of ``ground_truth``; several files are joined as ``coco.join`` joins those of a
data set, an image being known by its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autotimm.coco.categories import Category, CategoryIds, read_categories
from autotimm.coco.checks import Problems, as_id, as_size
from autotimm.coco.federated import federated_lists
from autotimm.coco.flags import DELETED, DELETED_IMAGE, is_deleted
from autotimm.coco.ids import (
    FileNames,
    free_ids,
    given_id,
    id_key,
    refuse_one_number,
    shifted,
    spelled,
)
from autotimm.coco.join import Joined
from autotimm.coco.lists import given_name
from autotimm.coco.patterns import count_patterns
from autotimm.coco.truths import checked_annotations
from autotimm.evaluation.ground_truth import GroundTruth, number_of, of_records
from autotimm.evaluation.read_files import read_lists
from autotimm.structures import InputError, Record, brief

Source = dict[str, Any] | list[dict[str, Any]] | str | Path
_FARTHEST = 2**20  # pixels: no image is larger


def of_source(
    source: Source | GroundTruth, sizes: Mapping[Any, tuple[int, int]] | None = None
) -> GroundTruth:
    """The ground truth in an annotation file, or in its content.

    Args:
        source: the file, its content, or a ground truth, which is handed through.
        sizes: height and width of images by ``id_key``, for those whose size the file lacks.

    Raises:
        InputError: it cannot be read or is no annotation file; names it.
    """
    if isinstance(source, GroundTruth):
        return source
    content: Any = source
    name = "ground truth"
    if isinstance(source, str | Path):
        content, name = read_lists(source), str(source)
    file = _File.of(content, name, sizes or {})
    return of_records(file.records, file.categories, name, file.problems)


def of_files(
    files: Sequence[str | Path], sizes: Mapping[Any, tuple[int, int]] | None = None
) -> GroundTruth:
    """The ground truth in one or more annotation files, joined.

    Args:
        files: at least one.
        sizes: as of :func:`of_source`; an id that several files have is the first one's.

    Raises:
        InputError: one cannot be read or is no annotation file, or they cannot be joined; names it.
    """
    if len(files) == 1:
        return of_source(files[0], sizes)
    parts = []
    rest = dict(sizes or {})
    for file in files:
        part = _File.of(read_lists(file), str(file), rest)
        part.number_annotations()
        parts.append(part)
        for key in part.keys:
            rest.pop(key, None)
    whole = Joined(parts, [Path(file) for file in files])
    problems = Problems()
    records = [whole.record(i, problems) for i in range(len(whole))]
    problems.update(whole.problems)
    return of_records(records, whole.categories, ", ".join(map(str, files)), problems)


@dataclass
class _File:
    """An annotation file's records, one an image, with what ``Joined`` asks of its parts.

    Attributes:
        name: of the file, for messages.
        categories: by id.
        problems: what was odd.
        records: of the images, in the file's order.
        keys: what the images' ids are looked up by, in the same order.
    """

    name: str
    categories: list[Category]
    problems: Problems
    records: list[Record]
    keys: list[Any]

    @classmethod
    def of(cls, content: Any, name: str, sizes: Mapping[Any, tuple[int, int]]) -> _File:
        if not isinstance(content, dict) or not all(
            isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
        ):
            raise InputError(
                f"{name} is no COCO annotation file: images, annotations, categories are missing"
            )
        categories = read_categories(content["categories"], Path(name))
        problems = Problems()
        ids = CategoryIds.of(categories)
        by_image, numbers = _images(content["images"], problems, name)
        raws = _dealt(content["annotations"], by_image, numbers, ids, problems, name)
        records = [
            _record(image_id, entry, raws[image_id], ids, sizes, problems)
            for image_id, entry in by_image.items()
        ]
        in_pixels = np.array([(one["width"], one["height"]) for one in records]).reshape(-1, 2)
        count_patterns([raws[image_id] for image_id in by_image], in_pixels, problems)
        keys = [id_key(entry["id"], exact=True) for entry in by_image.values()]
        return cls(name, categories, problems, records, keys)

    def number_annotations(self) -> None:
        """Gives the annotations numbers from 1 on, where the id of one is no whole number."""
        every = [
            one for record in self.records for one in (*record["annotations"], *record["unmasked"])
        ]
        known = [as_id(one["id"]) for one in every]
        numbers = range(1, len(every) + 1)
        for one, id_, number in zip(every, known, numbers, strict=True):
            one["id"] = number if None in known or id_ is None else id_

    def __len__(self) -> int:
        return len(self.records)

    def image_id(self, i: int) -> int:
        return self.records[i]["image_id"]

    def given_id(self, i: int) -> str | float | None:
        return self.records[i].get("given_id")

    def file_name(self, i: int) -> str:
        return self.records[i]["file_name"]

    def image_file(self, i: int) -> str:
        """What two files know the same image by; nothing that another has, where it has no name."""
        return self.file_name(i) or f"image {i} of {self.name}"

    def size(self, i: int) -> tuple[int, int]:
        return self.records[i]["width"], self.records[i]["height"]

    def annotation_ids(self) -> tuple[int, int]:
        ids = [
            one["id"]
            for record in self.records
            for one in (*record["annotations"], *record["unmasked"])
        ]
        return min(ids, default=0), max(ids, default=-1)

    def record(self, i: int, problems: Problems | None = None) -> Record:
        return self.records[i]


def _record(
    image_id: int,
    entry: dict[str, Any],
    raws: list[dict[str, Any]],
    ids: CategoryIds,
    sizes: Mapping[Any, tuple[int, int]],
    problems: Problems,
) -> Record:
    """What an annotation file says of one image, checked."""
    key = id_key(entry["id"], exact=True)
    height, width = _size(entry, raws, sizes.get(key), problems)
    file_name = given_name(entry)[1]
    shown = file_name or f"image {image_id}"

    def odd(raw: Mapping[str, Any], kind: str) -> None:
        problems.add(kind, f"annotation {raw['id']} of {shown}")

    annotations, unmasked = checked_annotations(raws, height, width, odd)
    record: Record = {
        "image_id": image_id,
        "file_name": file_name,
        "width": width,
        "height": height,
        "annotations": annotations,
        "unmasked": unmasked,
    }
    if not isinstance(key, int):
        record["given_id"] = given_id(entry["id"])
    record.update(federated_lists(entry, ids, problems, shown))  # type: ignore[typeddict-item]
    return record


def _images(
    entries: list[Any], problems: Problems, name: str
) -> tuple[dict[int, dict[str, Any]], dict[Any, int]]:
    """Entries of images by number, and the number of each id that is none."""
    by_image: dict[int, dict[str, Any]] = {}
    texts: dict[Any, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        where = f"images[{position}]"
        if not isinstance(entry, dict):
            problems.add("image entry is not an object (left out)", where)
            continue
        shown = given_name(entry)[1] or where
        key = id_key(entry.get("id"), exact=True)
        known: dict[Any, dict[str, Any]] = by_image if isinstance(key, int) else texts
        if key is None:
            problems.add("image id is neither a number nor text (image left out)", shown)
        elif key in known:
            refuse_one_number(known[key]["id"], entry["id"], name)
            problems.add("image id occurs twice (later image left out)", f"{shown} (id {key})")
        elif is_deleted(entry):
            problems.add(DELETED_IMAGE, shown)
        else:
            known[key] = entry
    numbers = dict(zip(texts, free_ids({*by_image}, len(texts)), strict=True))
    return by_image | {numbers[key]: entry for key, entry in texts.items()}, numbers


def _dealt(
    entries: list[Any],
    images: Mapping[int, Any],
    numbers: Mapping[Any, int],
    categories: CategoryIds,
    problems: Problems,
    name: str,
) -> dict[int, list[dict[str, Any]]]:
    """The annotations of each image; pycocotools, too, leaves out those of no image or category."""
    dealt: dict[int, list[dict[str, Any]]] = {image: [] for image in images}
    files = FileNames(lambda: ((given_name(one)[1], image) for image, one in images.items()))
    used, strange = set[int](), set[int]()
    for position, raw in enumerate(entries):
        shown = f"annotations[{position}]"
        if not isinstance(raw, dict):
            problems.add("annotation is not an object (left out)", shown)
            continue
        image = number_of(raw.get("image_id"), numbers)
        text = spelled(raw.get("image_id"))
        if image not in dealt or (text is not None and text != spelled(images[image]["id"])):
            named = files.find(text or id_key(raw.get("image_id"), exact=True))
            if named is not None and named != image:
                image = named
                problems.add("image_id is the image's file name (matched by it)", shown)
        category, _ = categories.find(raw.get("category_id"), exact=True)
        if image not in dealt:
            problems.add("annotation of an unknown image (left out)", shown)
        elif category not in categories.ids:
            problems.add("annotation of an unknown category (left out)", shown)
            if isinstance(category, int):
                strange.add(category)
        elif is_deleted(raw):
            problems.add(DELETED, shown)
        else:
            if isinstance(category, int):
                used.add(category)
            id_ = raw.get("id", position)
            dealt[image].append({**raw, "id": id_, "category_id": categories.ids[category]})
    shift = shifted(strange, used, categories.ids)
    if shift is not None:
        problems.add(shift, f"category_id {min(strange)}")
    if entries and not any(dealt.values()):
        why = "; ".join(line for line in problems.lines() if line.startswith("annotation "))
        raise InputError(f"{name}: none of its {len(entries):,} annotations can be used: {why}")
    return dealt


def _size(
    entry: dict[str, Any],
    raws: list[dict[str, Any]],
    known: tuple[int, int] | None,
    problems: Problems,
) -> tuple[int, int]:
    """Height and width of an image: the file's, or else ``known``, or what its masks tell."""
    size = as_size(entry.get("width"), entry.get("height"))
    if size is not None:
        return size[1], size[0]
    what, shown = "width or height missing or odd", brief(entry.get("file_name") or entry["id"])
    runs = [
        raw["segmentation"].get("size") for raw in raws if isinstance(raw.get("segmentation"), dict)
    ]
    for height, width in (
        one for one in (known, *runs) if isinstance(one, list | tuple) and len(one) == 2
    ):
        if (size := as_size(width, height)) is not None:
            problems.add(f"{what} (its masks' taken)", shown)
            return size[1], size[0]
    problems.add(f"{what} (taken as large as its boxes and polygons need)", shown)
    x, y = 1.0, 1.0
    for raw in raws:
        polygons = raw.get("segmentation")
        for part in polygons if isinstance(polygons, list) else []:
            flat = part if isinstance(part, list) else []
            x, y = max([x, *filter(_is_side, flat[::2])]), max([y, *filter(_is_side, flat[1::2])])
    size = as_size(math.ceil(x), math.ceil(y)) or (1, 1)
    return size[1], size[0]


def _is_side(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= _FARTHEST
