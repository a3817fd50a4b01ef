"""What is to be found, however it comes: an annotation file, its content, records of a data set.

Invariants: every instance counts as pycocotools counts it, also one without a mask; what cannot be
used is left out and counted by kind; ids are the dataset's own, those of annotations from 1 on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotimm.coco.checks import Problems, as_size, is_text
from autotimm.coco.ids import free_ids, id_key
from autotimm.coco.index import Category
from autotimm.coco.jsontext import NotJSONError, Text, parse
from autotimm.coco.lists import FEDERATED, CategoryIds, federated_lists, read_categories
from autotimm.coco.truths import checked_annotations, of_evaluation, truths
from autotimm.structures import InputError, Record

_LONG = re.compile(rb"[:,\[\s]-?[0-9]{20}")  # 2**64 has 20 digits

Source = dict[str, Any] | list[dict[str, Any]] | str | Path


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """Images, and every instance in them that evaluation counts.

    Attributes:
        name: what messages call it.
        images: as a COCO file has them: ``id``, ``file_name``, ``height``, ``width``, and LVIS'
            lists where the file has them.
        annotations: as ``coco.truths`` has them, with ``image_id``, and ``given_id``, their own.
        categories: by id.
        problems: what was odd.
        numbers: the number of each image whose id is none, by that id.
    """

    name: str
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[Category]
    problems: Problems = field(default_factory=Problems)
    numbers: dict[Any, int] = field(default_factory=dict)

    @property
    def federated(self) -> bool:
        """Whether the images say what was looked for in them: LVIS' rule goes by that."""
        return any(FEDERATED[0] in image for image in self.images)

    def frame(self) -> dict[str, Any]:
        """Images and categories as COCO's evaluation takes them."""
        # Names may be anything; only ids count.
        images = [{**image, "file_name": ""} for image in self.images]
        categories = [
            {"id": one.id, "name": str(one.id)}
            | ({"frequency": one.frequency} if one.frequency else {})
            for one in self.categories
        ]
        return {"images": images, "categories": categories}

    def content(self) -> dict[str, Any]:
        """The content of a COCO annotation file that says the same."""
        categories = [
            {"id": one.id, "name": one.name, "supercategory": one.supercategory}
            | ({} if one.given_id is None else {"given_id": one.given_id})
            for one in self.categories
        ]
        annotations = []
        for one in self.annotations:
            entry = {**one, "id": one["given_id"]}
            del entry["given_id"], entry["masked"]
            annotations.append(entry)
        return {"images": self.images, "annotations": annotations, "categories": categories}


def of_records(
    records: Iterable[Record],
    categories: Iterable[Category],
    name: str = "the data",
    problems: Problems | None = None,
) -> GroundTruth:
    """The ground truth in checked records, of a COCO folder or of its shards.

    Args:
        records: one an image.
        categories: of the data set.
        name: what messages call it.
        problems: what was odd where the records were made.

    Raises:
        InputError: two images have one id that is no whole number, as in joined shards of older
            versions; names it.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    numbers: dict[Any, int] = {}
    for record in records:
        image: dict[str, Any] = {"id": record["image_id"]}
        if "given_id" in record:
            image["given_id"] = record["given_id"]
            key = id_key(record["given_id"], exact=True)
            if key in numbers:
                raise InputError(
                    f"{name}: two images have the id {key}, the second one {record['file_name']}: "
                    "results cannot tell them apart; make the shards again, or change its id"
                )
            numbers[key] = record["image_id"]
        image |= {key: record[key] for key in ("file_name", "height", "width")}
        images.append(image | {key: record[key] for key in FEDERATED if key in record})
        _append(annotations, record)
    by_id = sorted(categories, key=lambda one: one.id)
    kept = of_evaluation(problems or Problems())
    return GroundTruth(name, images, annotations, by_id, kept, numbers)


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
        content, name = read_json(source), str(source)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
    ):
        raise InputError(
            f"{name} is no COCO annotation file: images, annotations, categories are missing"
        )
    categories = read_categories(content["categories"], Path(name))
    problems = Problems()
    by_image, numbers = _images(content["images"], name)
    raws = _dealt(content["annotations"], by_image, numbers, CategoryIds.of(categories), problems)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, entry in by_image.items():
        known = (sizes or {}).get(id_key(entry["id"], exact=True))
        height, width = _size(entry, raws[image_id], known, problems)
        file_name = entry.get("file_name")
        image: dict[str, Any] = {
            "id": image_id,
            "file_name": file_name if is_text(file_name) else "",
            "height": height,
            "width": width,
        }
        images.append(image | federated_lists(entry))
        shown = image["file_name"] or f"image {image_id}"

        def odd(raw: dict[str, Any], kind: str, shown: str = shown) -> None:
            problems.add(kind, f"annotation {raw['id']} of {shown}")

        learnt, unmasked = checked_annotations(raws[image_id], height, width, odd)
        record: Record = {
            "image_id": image_id,
            "file_name": image["file_name"],
            "width": width,
            "height": height,
            "annotations": learnt,
            "unmasked": unmasked,
        }
        _append(annotations, record)
    kept = of_evaluation(problems)
    return GroundTruth(name, images, annotations, categories, kept, numbers)


def read_json(path: str | Path) -> Any:
    """The content of a JSON file of any encoding that annotation files have.

    Raises:
        InputError: it cannot be read, or is not JSON; names it.
    """
    text = Text(Path(path))
    data = text.read(text.begin, text.end - text.begin)
    try:
        # The quick parser rounds whole numbers of more than 64 bits, and ids may be such.
        return parse(data, exact=_LONG.search(data) is not None)
    except NotJSONError:
        raise text.fault() from None


def _append(annotations: list[dict[str, Any]], record: Record) -> None:
    """Appends the truths of an image, numbered from 1 on.

    COCOeval takes a match with annotation 0 for no match.
    """
    for one in truths(record):
        entry: dict[str, Any] = {**one, "image_id": record["image_id"], "given_id": one["id"]}
        annotations.append(entry | {"id": len(annotations) + 1})


def _images(entries: list[Any], name: str) -> tuple[dict[int, dict[str, Any]], dict[Any, int]]:
    """Entries of images by number, and the number of each id that is none."""
    by_image: dict[int, dict[str, Any]] = {}
    texts: dict[Any, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or "id" not in entry:
            raise InputError(f"{name}: images[{position}] is no object with an id")
        key = id_key(entry["id"], exact=True)
        if key is None:
            raise InputError(f"{name}: image id {entry['id']!r} is neither a number nor text")
        known: dict[Any, dict[str, Any]] = by_image if isinstance(key, int) else texts
        if key in known:
            raise InputError(f"{name}: two images have the id {key}")
        known[key] = entry
    numbers = dict(zip(texts, free_ids({*by_image}, len(texts)), strict=True))
    return by_image | {numbers[key]: entry for key, entry in texts.items()}, numbers


def _dealt(
    entries: list[Any],
    images: Mapping[int, Any],
    numbers: Mapping[Any, int],
    categories: CategoryIds,
    problems: Problems,
) -> dict[int, list[dict[str, Any]]]:
    """The annotations of each image; pycocotools, too, leaves out those of no image or category."""
    dealt: dict[int, list[dict[str, Any]]] = {image: [] for image in images}
    for position, raw in enumerate(entries):
        shown = f"annotations[{position}]"
        if not isinstance(raw, dict):
            problems.add("annotation is not an object (left out)", shown)
            continue
        image = number_of(raw.get("image_id"), numbers)
        category, _ = categories.find(raw.get("category_id"), exact=True)
        if image not in dealt:
            problems.add("annotation of an unknown image (left out)", shown)
        elif category not in categories.ids:
            problems.add("annotation of an unknown category (left out)", shown)
        else:
            id_ = raw.get("id", position)
            dealt[image].append({**raw, "id": id_, "category_id": categories.ids[category]})
    return dealt


def number_of(image_id: Any, numbers: Mapping[Any, int]) -> int | None:
    """The number of an image, by its id as a file has it; None where that cannot be one."""
    key = id_key(image_id, exact=True)
    return numbers.get(key) if isinstance(key, str) else key


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
    what, shown = "width or height missing or odd", str(entry.get("file_name") or entry["id"])
    runs = [
        raw["segmentation"].get("size") for raw in raws if isinstance(raw.get("segmentation"), dict)
    ]
    for height, width in (
        one for one in (known, *runs) if isinstance(one, list | tuple) and len(one) == 2
    ):
        if as_size(width, height) is not None:
            problems.add(f"{what} (its masks' taken)", shown)
            return int(height), int(width)
    problems.add(f"{what} (taken as large as its boxes and polygons need)", shown)
    x, y = 1.0, 1.0
    for raw in raws:
        polygons = raw.get("segmentation")
        for part in polygons if isinstance(polygons, list) else []:
            flat = [v for v in part if isinstance(v, int | float)] if isinstance(part, list) else []
            x, y = max([x, *flat[::2]]), max([y, *flat[1::2]])
    sides = [math.ceil(side) if math.isfinite(side) else 0 for side in (y, x)]
    return (sides[0], sides[1]) if as_size(sides[1], sides[0]) else (1, 1)
