"""Official COCO AP: detections -> COCO's results format -> pycocotools' twelve numbers.

Invariants: what a caller hands in is not changed; ids are the dataset's own; a results file that
does not belong to the ground truth is refused in one line, never evaluated in part.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from autotimm import masks
from autotimm.structures import Detections, InputError, Record

if TYPE_CHECKING:
    from autotimm.coco import Category

STATS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
"""Names of pycocotools' statistics, in its order."""


def to_results(
    detections: Detections, image_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """One image's detections as entries of a COCO results file.

    Args:
        detections: boxes and ``rles`` (where there are masks) in the original image's pixels.
        image_id: the dataset's own.
        category_ids: the dataset's category id of each label.

    Returns:
        A dict a detection: ``image_id``, ``category_id``, ``bbox`` [x, y, w, h], ``score`` and,
        where there are masks, ``segmentation``. orjson or json can write it as it is.
    """
    results: list[dict[str, Any]] = []
    rles = detections.get("rles")
    labels, scores = detections["labels"].tolist(), detections["scores"].tolist()
    for i, (x1, y1, x2, y2) in enumerate(detections["boxes"].tolist()):
        result: dict[str, Any] = {
            "image_id": int(image_id),
            "category_id": int(category_ids[labels[i]]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": scores[i],
        }
        if rles is not None:
            result["segmentation"] = {"size": list(rles[i]["size"]), "counts": rles[i]["counts"]}
        results.append(result)
    return results


def ground_truth(records: Iterable[Record], categories: Iterable[Category]) -> dict[str, Any]:
    """A COCO annotation file's content from checked records (of a COCO folder or of its shards)."""
    images, annotations = [], []
    for record in records:
        images.append(
            {
                "id": record["image_id"],
                "file_name": record["file_name"],
                "width": record["width"],
                "height": record["height"],
            }
        )
        annotations += [{**one, "image_id": record["image_id"]} for one in record["annotations"]]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": one.id, "name": one.name, "supercategory": one.supercategory}
            for one in categories
        ],
    }


def evaluate(
    ground_truth: dict[str, Any] | str | Path,
    results: list[dict[str, Any]] | str | Path,
    iou_type: Literal["bbox", "segm"],
) -> dict[str, float]:
    """Average precision and recall over all images of the ground truth.

    Args:
        ground_truth: content of a COCO annotation file, or the file.
        results: entries of a COCO results file, or the file. For ``segm`` each needs a
            ``segmentation``; for ``bbox`` a ``bbox``, or a segmentation whose box is then taken.
        iou_type: compare boxes or masks.

    Returns:
        The twelve ``STATS`` as pycocotools computes them; -1 where nothing could be counted.

    Raises:
        InputError: a file cannot be read, or does not fit; names it and the first odd entry.
    """
    if iou_type not in ("bbox", "segm"):
        raise InputError(f"iou_type is {iou_type!r}: choose bbox or segm")
    truth_name, result_name = _name(ground_truth, "ground truth"), _name(results, "results")
    truth, found = _content(ground_truth), _content(results)
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
    except (KeyError, TypeError) as error:
        raise InputError(f"{truth_name}: an image or category lacks {error}") from error
    frame = {"info": {}, "images": truth["images"], "categories": truth["categories"]}
    # Numbered anew from 1, because pycocotools takes a match with annotation 0 for no match.
    truths = [
        _truth(one, number, sizes, iou_type, truth_name)
        for number, one in enumerate(truth["annotations"], 1)
        # pycocotools, too, leaves out what belongs to no image.
        if _image_id(one, f"{truth_name}: annotation number {number}") in sizes
    ]
    detections = [
        _detection(one, number, sizes, category_ids, iou_type, result_name)
        for number, one in enumerate(found, 1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
        cocos = []
        for annotations in (truths, detections):
            coco = COCO()
            coco.dataset = {**frame, "annotations": annotations}
            coco.createIndex()
            cocos.append(coco)
        run = COCOeval(*cocos, iouType=iou_type)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {name: float(value) for name, value in zip(STATS, run.stats, strict=True)}


def _name(source: Any, role: str) -> str:
    return str(source) if isinstance(source, str | Path) else role


def _content(source: Any) -> Any:
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
        "image_id": source["image_id"],
        "category_id": source.get("category_id"),
        "iscrowd": int(bool(source.get("iscrowd", 0))),
        **_extent(source, sizes, iou_type, where),
    }
    if source.get("area") is not None:
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
    if not isinstance(category_id, int) or category_id not in category_ids:
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
    if not isinstance(source, dict) or not isinstance(source.get("image_id"), int):
        raise InputError(f"{where} is not an object with an image_id")
    return source["image_id"]


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
        raise InputError(f"{where} has no segmentation: evaluate it with iou_type bbox")
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
