"""What is evaluated, from COCO's files or their content: checked, and complete for COCOeval.

Invariants: what a caller hands in is not changed; a results file that does not belong to the ground
truth is refused in one line, never evaluated in part.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import orjson

from autotimm.coco import masks
from autotimm.structures import InputError

IouType = Literal["bbox", "segm"]
Source = dict[str, Any] | list[dict[str, Any]] | str | Path


def prepared(
    ground_truth: Source,
    results: Source,
    iou_type: IouType,
    names: tuple[str, str] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ground truth and detections as two annotation files' contents, with equal images.

    Args:
        ground_truth: content of a COCO annotation file, or the file.
        results: entries of a COCO results file, or the file. For ``segm`` each needs a
            ``segmentation``; for ``bbox`` a ``bbox``, or a segmentation whose box is then taken.
        iou_type: compare boxes or masks.
        names: what to call both in messages; by default the files.

    Returns:
        Both with ids from 1; ``given_id`` of an annotation is the one that it had.

    Raises:
        InputError: a file cannot be read, or does not fit; names it and the first odd entry.
    """
    if iou_type not in ("bbox", "segm"):
        raise InputError(f"iou_type is {iou_type!r}: choose bbox or segm")
    truth_name, result_name = names or names_of(ground_truth, results)
    truth, found = content(ground_truth), content(results)
    if not isinstance(truth, dict) or not all(
        isinstance(truth.get(key), list) for key in ("images", "annotations", "categories")
    ):
        raise InputError(
            f"{truth_name} is no COCO annotation file: images, annotations, categories are missing"
        )
    if not isinstance(found, list):
        raise InputError(f"{result_name} is no COCO results file: it must hold a list")

    try:
        sizes = {one["id"]: (one["height"], one["width"]) for one in truth["images"]}
        category_ids = {one["id"] for one in truth["categories"]}
    except KeyError as error:
        raise InputError(f"{truth_name}: an image or category lacks {error}") from error
    except TypeError as error:
        raise InputError(f"{truth_name}: an image or category is no object with an id") from error
    for one in truth["images"]:
        if not _is_whole(one["id"], 0, 2**63):
            raise InputError(f"{truth_name}: image id {one['id']!r} is not a whole number from 0")
    if len(sizes) < len(truth["images"]):
        [(twice, _)] = Counter(one["id"] for one in truth["images"]).most_common(1)
        raise InputError(f"{truth_name}: two images have the id {twice}")
    for number in category_ids:
        if not _is_whole(number, 0):
            raise InputError(f"{truth_name}: category id {number!r} is not a whole number from 0")
    if len(category_ids) < len(truth["categories"]):
        raise InputError(f"{truth_name}: two categories have the same id")
    for image, sides in sizes.items():
        if not all(_is_whole(side, 1) for side in sides):
            raise InputError(
                f"{truth_name}: image {image!r}: height and width are {sides}, not whole pixels"
            )
    found = _with_numbers(found, truth)
    # Their names may be anything; only ids count.
    frame = {
        "images": [
            {"id": one, "file_name": "", "height": h, "width": w} for one, (h, w) in sizes.items()
        ],
        "categories": [{"id": one, "name": str(one)} for one in sorted(category_ids)],
    }
    # Numbered anew from 1: COCOeval takes a match with annotation 0 for no match.
    truths = [
        _truth(one, number, sizes, iou_type, truth_name)
        for number, one in enumerate(truth["annotations"], 1)
        # pycocotools, too, leaves out what belongs to no image or no category.
        if _image_id(one, f"{truth_name}: annotation number {number}") in sizes
        and _category_id(one, f"{truth_name}: annotation number {number}") in category_ids
    ]
    detections = [
        _detection(one, number, sizes, category_ids, iou_type, result_name)
        for number, one in enumerate(found, 1)
    ]
    return {**frame, "annotations": truths}, {**frame, "annotations": detections}


def _with_numbers(results: list[Any], truth: dict[str, Any]) -> list[Any]:
    """Results by the numbers that the ground truth has for ids that are none (``given_id``)."""
    numbers = {
        key: {one["given_id"]: one["id"] for one in truth[of] if "given_id" in one}
        for key, of in (("image_id", "images"), ("category_id", "categories"))
    }
    if not any(numbers.values()):
        return results

    def numbered(one: Any) -> Any:
        if not isinstance(one, dict):
            return one
        given = {key: one.get(key) for key in numbers}
        known = {
            key: numbers[key][id_]
            for key, id_ in given.items()
            if isinstance(id_, str | float) and id_ in numbers[key]
        }
        return one | known

    return [numbered(one) for one in results]


def names_of(ground_truth: Source, results: Source) -> tuple[str, str]:
    """What to call them in messages."""
    pairs = ((ground_truth, "ground truth"), (results, "results"))
    truth, found = (str(one) if isinstance(one, str | Path) else role for one, role in pairs)
    return truth, found


def content(source: Any) -> Any:
    """What a JSON file holds; anything but a path is handed through."""
    if not isinstance(source, str | Path):
        return source
    try:
        return orjson.loads(Path(source).read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror or error}") from error
    except orjson.JSONDecodeError as error:
        raise InputError(f"{source} is not JSON: {error}") from error


def _truth(
    source: dict[str, Any],
    number: int,
    sizes: dict[int, tuple[int, int]],
    iou_type: str,
    file: str,
) -> dict[str, Any]:
    """An annotation with everything that pycocotools will ask for."""
    where = f"{file}: annotation {source.get('id', f'number {number}')}"
    one = {
        "id": number,
        "given_id": source.get("id"),
        "image_id": source["image_id"],
        "category_id": source.get("category_id"),
        "iscrowd": _crowd(source, where),
        **_extent(source, sizes, iou_type, where),
    }
    if source.get("area") is not None:
        if not _is_number(source["area"]):
            raise InputError(f"{where}: area is {source['area']!r}, not a number")
        one["area"] = source["area"]
    return one


def _detection(
    source: Any,
    number: int,
    sizes: dict[int, tuple[int, int]],
    category_ids: set[int],
    iou_type: str,
    file: str,
) -> dict[str, Any]:
    """A results entry, checked, with everything that pycocotools will ask for."""
    where = f"{file}: result {number}"
    if _image_id(source, where) not in sizes:
        raise InputError(f"{where}: image_id {source['image_id']} is not in the ground truth")
    for key in ("category_id", "score"):
        if key not in source:
            raise InputError(f"{where} has no {key!r}")
    category_id, score = source["category_id"], source["score"]
    if type(category_id) is not int or category_id not in category_ids:
        raise InputError(
            f"{where}: category_id {category_id!r} is not in the ground truth"
            " (results hold the dataset's own ids, not the model's labels)"
        )
    if not _is_number(score):
        raise InputError(f"{where}: score is {score!r}, not a number")
    return {
        "id": number,
        "image_id": source["image_id"],
        "category_id": category_id,
        "iscrowd": 0,
        "score": score,
        **_extent(source, sizes, iou_type, where),
    }


def _image_id(source: Any, where: str) -> int:
    if not isinstance(source, dict) or type(source.get("image_id")) is not int:
        raise InputError(f"{where} is not an object with an image_id that is a whole number")
    return source["image_id"]


def _category_id(source: dict[str, Any], where: str) -> int:
    if type(source.get("category_id")) is not int:
        raise InputError(f"{where}: category_id is {source.get('category_id')!r}, no whole number")
    return source["category_id"]


def _crowd(source: dict[str, Any], where: str) -> int:
    given = source.get("iscrowd") or 0
    if given not in (0, 1):  # the text "0" would count as a crowd
        raise InputError(f"{where}: iscrowd is {given!r}, not 0 or 1")
    return int(given)


def _is_whole(value: Any, least: int, end: int = 2**31) -> bool:
    return type(value) is int and least <= value < end


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _extent(
    source: dict[str, Any], sizes: dict[int, tuple[int, int]], iou_type: str, where: str
) -> dict[str, Any]:
    """What is compared, mask or box, and its area, which decides on the size class.

    The area of masks is the mask's; pycocotools' ``loadRes`` takes the box's where results hold
    both, which moves thin objects into a larger class.
    """
    box, segmentation = source.get("bbox"), source.get("segmentation")
    if iou_type == "bbox" and (box or not segmentation):
        if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_number, box)):
            raise InputError(f"{where}: bbox is {box!r}, not [x, y, width, height]")
        return {"bbox": [float(value) for value in box], "area": float(box[2] * box[3])}
    if not segmentation:
        raise InputError(
            f"{where} has no segmentation: compare boxes alone (--boxes-only, iou_type bbox)"
        )
    try:
        rle = masks.to_rle(segmentation, *sizes[source["image_id"]])
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    x1, y1, x2, y2 = masks.box(rle)
    return {
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "segmentation": rle,
        "area": float(masks.area(rle)),
    }
