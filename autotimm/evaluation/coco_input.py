"""What is evaluated, from COCO's files or their content: checked, and complete for COCOeval.

Invariants: what a caller hands in is not changed; a results file that does not belong to the ground
truth is refused in one line, never evaluated in part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from autotimm.coco import boxes, masks, segmentation
from autotimm.coco.categories import CategoryIds
from autotimm.coco.checks import Problems
from autotimm.coco.ids import id_key
from autotimm.evaluation.ground_truth import GroundTruth, number_of
from autotimm.evaluation.read_files import read_json
from autotimm.structures import InputError, brief

IouType = Literal["bbox", "segm"]
OF_NO_SIZE = 1e12
"""An area in pixels above the largest size class, which ends at 1e10: such a truth is ignored."""
Results = list[dict[str, Any]] | str | Path


def entries_of(results: Results) -> list[Any]:
    """The entries of a COCO results file, or those that are handed in.

    Raises:
        InputError: the file cannot be read, or is none; names it.
    """
    entries: Any = read_json(results) if isinstance(results, str | Path) else results
    if not isinstance(entries, list):
        raise InputError(f"{name_of(results)} is no COCO results file: it must hold a list")
    return entries


def name_of(results: Results) -> str:
    """What messages call them."""
    return str(results) if isinstance(results, str | Path) else "results"


def sizes_of(results: list[Any]) -> dict[Any, tuple[int, int]]:
    """Height and width of images by ``id_key``, as the masks of results have them."""
    sizes: dict[Any, tuple[int, int]] = {}
    for one in results:
        mask = one.get("segmentation") if isinstance(one, dict) else None
        size = mask.get("size") if isinstance(mask, dict) else None
        if isinstance(size, list) and len(size) == 2:
            sizes.setdefault(id_key(one.get("image_id"), exact=True), (size[0], size[1]))
    return sizes


def prepared(
    truth: GroundTruth,
    results: list[Any],
    iou_type: IouType,
    name: str = "results",
    problems: Problems | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ground truth and detections as two annotation files' contents, with equal images.

    Args:
        truth: what is to be found.
        results: entries of a COCO results file. For ``segm`` each needs a ``segmentation``; for
            ``bbox`` a ``bbox``, or a segmentation whose box is then taken.
        iou_type: compare boxes or masks.
        name: what messages call the results.
        problems: where masks of the results that have an odd shape are counted.

    Returns:
        Both with ids from 1; ``given_id`` of an annotation is the one that it had.

    Raises:
        InputError: the results do not fit; names the first odd entry.
    """
    if iou_type not in ("bbox", "segm"):
        raise InputError(f"iou_type is {iou_type!r}: choose bbox or segm")
    sizes = {one["id"]: (one["height"], one["width"]) for one in truth.images}
    categories = CategoryIds.of(truth.categories)
    problems = Problems() if problems is None else problems
    detections = [
        _detection(one, number, sizes, truth.numbers, categories, iou_type, name, problems)
        for number, one in enumerate(results, 1)
    ]
    if truth.federated:  # as of truths
        detections = [one for one in detections if one["area"] > 0]
    frame = truth.frame()
    wanted = [*_truths(truth, iou_type)]
    return {**frame, "annotations": wanted}, {**frame, "annotations": detections}


def _truths(truth: GroundTruth, iou_type: IouType) -> Iterator[dict[str, Any]]:
    """The annotations with what the evaluation looks at, and nothing that it should not."""
    keys = ["id", "given_id", "image_id", "category_id", "iscrowd", "bbox", "area"]
    keys += ["segmentation"] * (iou_type == "segm")
    for one in truth.annotations:
        entry = {key: one[key] for key in keys}
        if truth.federated:  # LVIS knows no crowds, and goes by the flag ignore
            if one["area"] <= 0:
                continue  # as the lvis package's get_ann_ids does
            entry["iscrowd"] = 0
            if one["ignore"]:
                entry["area"] = OF_NO_SIZE  # which hotcoco ignores as the lvis package does
        yield entry


def _detection(
    source: Any,
    number: int,
    sizes: Mapping[int, tuple[int, int]],
    numbers: Mapping[Any, int],
    categories: CategoryIds,
    iou_type: str,
    file: str,
    problems: Problems,
) -> dict[str, Any]:
    """A results entry, checked, with everything that pycocotools will ask for."""
    where = f"{file}: result {number}"
    if not isinstance(source, dict) or source.get("image_id") is None:
        raise InputError(
            f"{where} is not an object with an image_id; each has image_id, category_id, score "
            "and a bbox, a segmentation or both"
        )
    image_id = number_of(source["image_id"], numbers)
    if image_id is None or image_id not in sizes:
        raise InputError(
            f"{where}: image_id {brief(source['image_id'])} is not in the ground truth, nor a file "
            "name there (of results of 'autotimm predict', whose ids are its own, keep the "
            "images.json beside them)"
        )
    for key in ("category_id", "score"):
        if key not in source:
            raise InputError(f"{where} has no {key!r}")
    category, _ = categories.find(source["category_id"], exact=True)
    if category not in categories.ids:
        raise InputError(
            f"{where}: category_id {brief(source['category_id'])} is not in the ground truth"
            " (results hold the dataset's own ids, not the model's labels)"
        )
    score = boxes.number(source["score"])
    if score is None:
        raise InputError(f"{where}: score is {brief(source['score'])}, not a number")
    if isinstance(source["score"], str):
        problems.add("score in quotes (read)", where)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": categories.ids[category],
        "iscrowd": 0,
        "score": score,
        **_extent(source, sizes[image_id], iou_type, where, problems),
    }


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _are_sides(box: Any) -> bool:
    return isinstance(box, list | tuple) and len(box) == 4 and all(map(_is_number, box))


def _extent(
    source: dict[str, Any],
    size: tuple[int, int],
    iou_type: str,
    where: str,
    problems: Problems,
) -> dict[str, Any]:
    """What is compared, mask or box, and its area, which decides on the size class.

    The area of masks is the mask's; pycocotools' ``loadRes`` takes the box's where results hold
    both, which moves thin objects into a larger class.
    """
    (box, kind), mask = boxes.read(source.get("bbox")), source.get("segmentation")
    if kind is not None:
        problems.add(kind, where)
    if iou_type == "bbox" and (box or not mask):
        if not _are_sides(box):
            raise InputError(f"{where}: bbox is {brief(box)}, not [x, y, width, height]")
        x, y, w, h = (float(value) for value in box)
        area = min(max(w * h, -OF_NO_SIZE), OF_NO_SIZE)  # finite
        return {"bbox": [x, y, w, h], "area": area}
    if not mask:
        raise InputError(
            f"{where} has no segmentation: compare boxes alone (--boxes-only, iou_type bbox)"
        )

    def odd(kind: str) -> None:
        if kind.endswith(segmentation.PART_LEFT_OUT):
            raise ValueError(kind.removesuffix(segmentation.PART_LEFT_OUT).strip())
        problems.add(kind, where)

    try:
        rle = segmentation.read(mask, *size, box, odd).rle
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    x1, y1, x2, y2 = masks.box(rle)
    if box and x2 > x1 and _are_sides(box) and not boxes.agrees(box, (x1, y1, x2, y2)):
        fault = boxes.fault(box, (x1, y1, x2, y2), *size)
        if fault is not None:
            problems.add(f"{fault} (box AP takes it as it is)", where)
    return {
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "segmentation": rle,
        "area": float(masks.area(rle)),
    }
