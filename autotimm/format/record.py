"""The record of an image, out of a shard, which may come from anywhere: checked before it is used.

Our own shards hold records as ``structures.Record`` has them; what differs is refused. Those of
others are taken as a COCO file's annotations are: what is odd is mended or left out.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import orjson

from autotimm.coco import masks
from autotimm.coco.checks import as_id, as_size, is_text
from autotimm.coco.federated import FEDERATED, as_stored
from autotimm.coco.truths import checked_annotations
from autotimm.images.decode import DataError
from autotimm.structures import Annotation, Record, Unmasked, brief


def checked_record(text: bytes | memoryview, where: str) -> Record:
    """A record out of a shard, which may come from anywhere."""
    try:
        record = orjson.loads(text)
        size = [_whole(record["height"], 1), _whole(record["width"], 1)]
        if as_size(*size) is None:
            raise ValueError("no image has its width and height")
        _whole(record["image_id"])
        if not isinstance(record["file_name"], str):
            raise ValueError("file_name is not text")
        if not isinstance(record.get("given_id", ""), str | float):
            raise ValueError("given_id is neither text nor a fraction")
        for annotation in record["annotations"]:
            _whole(annotation["id"])
            _whole(annotation["category_id"])
            if annotation["iscrowd"] not in (0, 1):
                raise ValueError("iscrowd is neither 0 nor 1")
            if annotation.get("ignore", 0) not in (0, 1):
                raise ValueError("ignore is neither 0 nor 1")
            _check_extent(annotation["bbox"], annotation["area"])
            if "given_bbox" in annotation or "given_area" in annotation:
                given = annotation.get("given_bbox", (0.0,) * 4), annotation.get("given_area", 0.0)
                _check_extent(*given)
            rle = annotation["segmentation"]
            if rle["size"] != size or not isinstance(rle["counts"], str):
                raise ValueError("a segmentation is no compressed RLE of the image's size")
            for polygon in annotation.get("polygons", []):
                masks.check_polygon(polygon)
        for truth in record.get("unmasked", ()):
            _whole(truth["id"])
            _whole(truth["category_id"])
            if truth["iscrowd"] not in (0, 1):
                raise ValueError("iscrowd is neither 0 nor 1")
            _check_extent(truth["bbox"], truth["area"])
        for key in FEDERATED:
            for category_id in record.get(key, ()):
                _whole(category_id)
    except KeyError as error:
        raise DataError(f"{where}: its record lacks {error}") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: its record is damaged: {error}") from error
    return record


def foreign_record(text: bytes | memoryview, where: str, known: Collection[int]) -> Record:
    """A record as others write it, checked: what is odd in it is mended or left out as in a COCO
    file (``checks.py``).

    Args:
        text: of the record, JSON.
        where: what messages call it.
        known: ids of the data set's categories; instances of others are left out.

    Raises:
        DataError: it is no record of an image; the message begins with ``where``.
    """
    try:
        raw = orjson.loads(text)
        image_id, width, height = facts(raw)
    except ValueError as error:
        raise DataError(f"{where}: its record is damaged: {error}") from error
    annotations: list[Annotation] = []
    unmasked: list[Unmasked] = []
    for number, entry in enumerate(entries(raw)):
        id_, category_id = as_id(entry.get("id")), as_id(entry.get("category_id"))
        if category_id is None or category_id not in known:
            continue  # counted when the tar was indexed
        polygons = entry.get("polygons")
        whole = with_segmentation(entry, number if id_ is None else id_, category_id)
        learnt, without = checked_annotations([whole], height, width, lambda *_: None)
        for annotation in learnt:
            if "polygons" not in annotation and polygons and _are_polygons(polygons):
                annotation["polygons"] = polygons
        annotations += learnt
        unmasked += without
    name = raw.get("file_name")
    record: Record = {
        "image_id": image_id,
        "file_name": name if is_text(name) else "",
        "width": width,
        "height": height,
        "annotations": annotations,
    }
    if unmasked:
        record["unmasked"] = unmasked
    record.update(as_stored(raw))  # type: ignore[typeddict-item]
    return record


def _check_extent(box: Any, area: Any) -> None:
    x, y, w, h = box
    if not math.isfinite(x + y + w + h + area):
        raise ValueError("a box or area is not finite")


def facts(raw: Any) -> tuple[int, int, int]:
    """Image id, width and height of a record; ValueError if it lacks one."""
    if not isinstance(raw, dict):
        raise ValueError("its .json is not an object")
    image_id, size = as_id(raw.get("image_id")), as_size(raw.get("width"), raw.get("height"))
    if image_id is None:
        raise ValueError("its .json has no whole number as image_id")
    if size is None:
        raise ValueError("its .json has no width and height of an image")
    return image_id, *size


def with_segmentation(entry: dict[str, Any], id_: int, category_id: int) -> dict[str, Any]:
    """An annotation of others with its ids as numbers, and its polygons where its mask is looked
    for."""
    return entry | {
        "id": id_,
        "category_id": category_id,
        "segmentation": entry.get("segmentation") or entry.get("polygons"),
    }


def entries(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """The annotations of a record that are objects at all."""
    annotations = raw.get("annotations")
    if not isinstance(annotations, list):
        return []
    return [entry for entry in annotations if isinstance(entry, dict)]


def _are_polygons(value: Any) -> bool:
    try:
        for polygon in value:
            masks.check_polygon(polygon)
    except (ValueError, TypeError):
        return False
    return isinstance(value, list)


def _whole(value: Any, least: int | None = None) -> int:
    if type(value) is not int or not (-(2**63) if least is None else least) <= value < 2**63:
        raise ValueError(f"{brief(value)} is not a whole number in range")
    return value
