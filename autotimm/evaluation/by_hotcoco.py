"""COCO's AP over images whose masks stay RLE, by hotcoco: torchmetrics' names, pycocotools' values.

Each rank matches its own images, and the first one joins what they found: a few kilobytes of an
image, whatever its masks are.

Invariants: nothing is decoded or made dense. An image's number decides on its place, so that the
values do not depend on which rank matched it, nor when.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from hotcoco import Params, StreamingEval
from torch import Tensor
from torchvision.ops import box_convert

from autotimm.evaluation.coco_eval import mean, summed
from autotimm.evaluation.coco_input import IouType
from autotimm.structures import Detections, Target

SUFFIXES = (
    *("", "_50", "_75", "_small", "_medium", "_large"),
    *("_mar_1", "_mar_10", "_mar_100", "_mar_small", "_mar_medium", "_mar_large"),
)
"""Of the values' names, in the order of ``coco_eval.STATS``; with another limit N of detections
``_mar_N`` for ``_mar_100``."""
_AT_ONCE = 64  # images; their entries take several times the memory of what they are made from


def matched(
    images: Sequence[tuple[int, Detections, Target]],
    labels: Sequence[int],
    kind: IouType,
    max_detections: int,
) -> StreamingEval:
    """Compares what was found in some images with what is there.

    Args:
        images: the number of each, from 0 on and its own among all ranks; what was found, and what
            is there.
        labels: all that occur on any rank, ascending.
        kind: compare boxes or masks.
        max_detections: how many of a class count in an image.
    """
    params = Params(kind)
    params.max_dets = [1, 10, max_detections]
    # hotcoco takes no category below 0, and a label may be anything.
    numbers = {label: number for number, label in enumerate(labels)}
    categories = [{"id": number, "name": str(label)} for label, number in numbers.items()]
    found = StreamingEval(categories, kind, params=params)
    for start in range(0, len(images), _AT_ONCE):
        some = images[start : start + _AT_ONCE]
        truths = [one for i, _, target in some for one in _truths(target, i, kind, numbers)]
        for number, one in enumerate(truths, 1):  # COCOeval takes a match with 0 for none
            one["id"] = number
        found.update(
            [{"id": i, **_size(detections, target)} for i, detections, target in some],
            truths,
            [one for i, detections, _ in some for one in _detections(detections, i, kind, numbers)],
        )
    return found


def values(
    found: Sequence[Mapping[tuple[IouType, int], StreamingEval]],
    kinds: Sequence[IouType],
    labels: Sequence[int],
    by_class: bool,
    max_detections: int,
) -> dict[str, Tensor]:
    """COCO's twelve numbers by the suffixes of their names, which are those of torchmetrics.

    Args:
        found: what :func:`matched` returned on each rank, by ``kind`` and ``max_detections``.
        kinds: boxes, masks, or both; of both, the boxes' numbers begin with ``_bbox``.
        labels: as of :func:`matched`.
        by_class: also AP and AR of each label.
        max_detections: as of :func:`matched`.
    """
    every: dict[str, float] = {}
    for kind in kinds:
        parts = [one[kind, max_detections] for one in found]
        head = "_bbox" if kind == "bbox" and len(kinds) > 1 else ""
        named = _of_all(parts, labels if by_class else (), max_detections)
        every |= {f"{head}{tail}": value for tail, value in named}
    return {name: torch.tensor(value) for name, value in every.items()}


def _of_all(
    parts: Sequence[StreamingEval], labels: Sequence[int], max_detections: int
) -> Iterator[tuple[str, float]]:
    totals = summed(StreamingEval.merge(parts).finalize(), (1, 10, max_detections))
    mar = f"_mar_{max_detections}"
    # With a limit of 10 two names are the same, here and in the statistics.
    names = dict.fromkeys(mar if name == "_mar_100" else name for name in SUFFIXES)
    yield from zip(names, totals.stats.values(), strict=True)
    for k, label in enumerate(labels):
        yield f"_class_{label}", mean(totals.precision[..., k])
        yield f"{mar}_class_{label}", mean(totals.recall[:, k])


def _size(*pair: Detections | Target) -> dict[str, int]:
    """Of the image; boxes are compared without it."""
    height, width = next((rle["size"] for one in pair for rle in one.get("rles", ())), (1, 1))
    return {"height": height, "width": width}


def _detections(
    found: Detections, image: int, kind: IouType, numbers: Mapping[int, int]
) -> Iterator[dict[str, Any]]:
    """As entries of a results file: hotcoco takes the area of what is compared, mask or box."""
    entries = _entries(found, image, kind, numbers)
    for one, score in zip(entries, found["scores"].tolist(), strict=True):
        yield {**one, "score": score}


def _truths(
    target: Target, image: int, kind: IouType, numbers: Mapping[int, int]
) -> Iterator[dict[str, Any]]:
    crowd, area = target["iscrowd"].tolist(), target["area"].tolist()
    for k, one in enumerate(_entries(target, image, kind, numbers)):
        yield {**one, "area": area[k], "iscrowd": crowd[k]}


def _entries(
    instances: Detections | Target, image: int, kind: IouType, numbers: Mapping[int, int]
) -> Iterator[dict[str, Any]]:
    categories = [numbers[label] for label in instances["labels"].tolist()]
    if kind == "segm":
        extents: list[Any] = instances["rles"]
    else:
        extents = box_convert(instances["boxes"].double(), "xyxy", "xywh").tolist()
    key = "segmentation" if kind == "segm" else "bbox"
    for category, extent in zip(categories, extents, strict=True):
        yield {"image_id": image, "category_id": category, key: extent}
