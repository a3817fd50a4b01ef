"""COCO's AP over images whose masks stay RLE, by hotcoco: torchmetrics' names, pycocotools' values.

Invariant: nothing is decoded or made dense.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert

from autotimm.coco import masks
from autotimm.evaluation.coco_eval import MAX_DETECTIONS, measured
from autotimm.evaluation.coco_input import IouType
from autotimm.structures import Detections, Target

SUFFIXES = (
    *("", "_50", "_75", "_small", "_medium", "_large"),
    *("_mar_1", "_mar_10", "_mar_100", "_mar_small", "_mar_medium", "_mar_large"),
)
"""Of the values' names, in the order of ``coco_eval.STATS``; with another limit N of detections
``_mar_N`` for ``_mar_100``."""


def values(
    images: Sequence[tuple[Detections, Target]],
    kinds: Sequence[IouType],
    by_class: bool,
    max_detections: int = MAX_DETECTIONS,
) -> dict[str, Tensor]:
    """COCO's twelve numbers by the suffixes of their names, which are those of torchmetrics.

    Args:
        images: what was found and what is there, of each.
        kinds: compare boxes, masks, or both; of both, the boxes' numbers begin with ``_bbox``.
        by_class: also AP and AR of each label that occurs.
        max_detections: how many of a class count in an image.
    """
    every: dict[str, float] = {}
    for kind in kinds:
        head = "_bbox" if kind == "bbox" and len(kinds) > 1 else ""
        named = _of_kind(images, kind, by_class, max_detections)
        every |= {f"{head}{tail}": value for tail, value in named}
    return {name: torch.tensor(value) for name, value in every.items()}


def _of_kind(
    images: Sequence[tuple[Detections, Target]],
    kind: IouType,
    by_class: bool,
    max_detections: int,
) -> Iterator[tuple[str, float]]:
    labels = sorted({label for pair in images for one in pair for label in one["labels"].tolist()})
    frame = {
        "images": [{"id": i, "file_name": "", **_size(pair)} for i, pair in enumerate(images, 1)],
        "categories": [{"id": label, "name": str(label)} for label in labels],
    }
    found: list[dict[str, Any]] = [
        one for i, (f, _) in enumerate(images, 1) for one in _detections(f, i, kind)
    ]
    truth = [one for i, (_, t) in enumerate(images, 1) for one in _truths(t, i, kind)]
    for entries in (found, truth):
        for number, one in enumerate(entries, 1):  # COCOeval takes a match with 0 for none
            one["id"] = number
    contents = {**frame, "annotations": truth}, {**frame, "annotations": found}
    result = measured(*contents, kind, (1, 10, max_detections))
    mar = f"_mar_{max_detections}"
    names = [mar if name == "_mar_100" else name for name in SUFFIXES]
    yield from zip(names, result.stats.values(), strict=True)
    for of_class in result.classes if by_class else ():
        yield f"_class_{of_class.id}", of_class.ap
        yield f"{mar}_class_{of_class.id}", of_class.ar


def _size(pair: tuple[Detections, Target]) -> dict[str, int]:
    """Of the image; boxes are compared without it."""
    height, width = next((rle["size"] for one in pair for rle in one.get("rles", ())), (1, 1))
    return {"height": height, "width": width}


def _detections(found: Detections, image: int, kind: IouType) -> Iterator[dict[str, Any]]:
    scores = found["scores"].tolist()
    for k, one in enumerate(_entries(found, image, kind)):
        width, height = one["bbox"][2:]
        area = float(masks.area(one["segmentation"])) if kind == "segm" else width * height
        yield {**one, "score": scores[k], "area": area, "iscrowd": 0}


def _truths(target: Target, image: int, kind: IouType) -> Iterator[dict[str, Any]]:
    crowd, area = target["iscrowd"].tolist(), target["area"].tolist()
    for k, one in enumerate(_entries(target, image, kind)):
        yield {**one, "area": area[k], "iscrowd": crowd[k]}


def _entries(instances: Detections | Target, image: int, kind: IouType) -> Iterator[dict[str, Any]]:
    labels = instances["labels"].tolist()
    boxes = box_convert(instances["boxes"].double(), "xyxy", "xywh").tolist()
    for k, box in enumerate(boxes):
        one = {"image_id": image, "category_id": labels[k], "bbox": box}
        yield one | {"segmentation": instances["rles"][k]} if kind == "segm" else one
