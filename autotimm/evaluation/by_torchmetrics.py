"""Values of torchmetrics' detection metrics over images whose masks stay RLE.

torchmetrics' own ``update`` takes dense masks and encodes each of them again; its states, which
hold RLE, are filled directly instead. Every image counts, also one without ground truth and one
without detections. (torchmetrics drops such an image when it compares masks alone, and its false
positives with it.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, detection
from torchvision.ops import box_convert

from autotimm.structures import RLE, Detections, Target

_TINY, _OF_NO_SIZE = 1e-9, 1e12  # pixels; the largest size class ends at 1e10
_NOTHING = {
    "boxes": torch.zeros(0, 4),
    "scores": torch.zeros(0),
    "labels": torch.zeros(0, dtype=torch.int64),
}


def values(metric: Metric, images: Sequence[tuple[Detections, Target]]) -> dict[str, Tensor]:
    """The values of a fresh metric over ``images``, by the suffixes of their names."""
    if isinstance(metric, detection.MeanAveragePrecision):
        metric.update([], [])  # so that torchmetrics does not warn of no update
        for found, target in images:
            _fill(metric, found, target)
    else:
        metric.update([_NOTHING], [_NOTHING])  # class_metrics fails without any image
        for found, target in images:
            _update(metric, found, target)
    return dict(_named(metric.compute()))


def _fill(metric: Any, found: Detections, target: Target) -> None:
    """Append one image to the states of a MeanAveragePrecision as its ``update`` would leave them.

    Boxes are put in even when only masks are compared: they are what makes torchmetrics list an
    image that has no mask.
    """
    metric.detection_box.append(_xywh(found["boxes"]))
    metric.detection_labels.append(found["labels"])
    metric.detection_scores.append(found["scores"].float())
    metric.groundtruth_box.append(_xywh(target["boxes"]))
    metric.groundtruth_labels.append(target["labels"])
    metric.groundtruth_crowds.append(target["iscrowd"])
    metric.groundtruth_area.append(_areas(target["area"]))
    if "segm" in metric.iou_type:
        metric.detection_mask.append(_state(found["rles"]))
        metric.groundtruth_mask.append(_state(target["rles"]))


def _update(metric: Metric, found: Detections, target: Target) -> None:
    """Update a metric of boxes alone, in its own box format.

    Crowd regions are left out, as it has no notion of them, and so are images without boxes on
    either side: no pair, no IoU.
    """
    single = target["iscrowd"] == 0
    if not (single.any() and len(found["boxes"])):
        return
    form = metric.box_format
    metric.update(
        [
            {
                "boxes": box_convert(found["boxes"].float(), "xyxy", form),
                "scores": found["scores"].float(),
                "labels": found["labels"],
            }
        ],
        [
            {
                "boxes": box_convert(target["boxes"][single].float(), "xyxy", form),
                "labels": target["labels"][single],
            }
        ],
    )


def _xywh(boxes: Tensor) -> Tensor:
    return box_convert(boxes.double(), "xyxy", "xywh")


def _areas(areas: Tensor) -> Tensor:
    """Areas that say what COCO's evaluation makes of them, as torchmetrics keeps positive ones
    alone and takes the mask's for the others: 0 is of the smallest size, less of none."""
    return torch.where(areas == 0, _TINY, torch.where(areas < 0, _OF_NO_SIZE, areas.double()))


def _state(rles: Sequence[RLE]) -> tuple[tuple[tuple[int, ...], bytes], ...]:
    return tuple((tuple(rle["size"]), rle["counts"].encode()) for rle in rles)


def _named(result: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Suffixes of the names under which a metric's values are logged, with the values (scalars)."""
    both = "segm_map" in result and "bbox_map" in result
    labels = [int(label) for label in result.get("classes", torch.empty(0)).reshape(-1)]
    for key, value in result.items():
        if key == "classes":
            continue
        head = ""
        if both:
            kind, _, key = key.partition("_")
            head = "_bbox" if kind == "bbox" else ""
        if key.endswith("_per_class"):
            if value.numel() != len(labels) or (value.dim() == 0 and value == -1):
                continue  # class_metrics is off, or nothing was seen
            tail = _tail(key.removesuffix("_per_class"))
            for label, one in zip(labels, value.reshape(-1), strict=True):
                yield f"{head}{tail}_class_{label}", one
        elif "/cl_" in key:
            yield f"{head}_class_{key.rpartition('_')[2]}", value
        else:
            yield head + _tail(key), value.reshape(())


def _tail(key: str) -> str:
    """``map`` and ``iou``, the main values -> nothing; ``map_50`` -> ``_50``; else ``_<key>``."""
    if key == "map" or key.endswith("iou"):
        return ""
    return "_" + key.removeprefix("map_")
