"""Objects that a model has found twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from autotimm.coco import masks as rle
from autotimm.structures import RLE

SAME = 0.5
"""The IoU of two detections from which they are taken for one object, as COCO's AP50 does."""


def found_twice(
    boxes: NDArray[np.float64], scores: Any, masks: Sequence[Any] | None
) -> NDArray[np.bool_]:
    """Whether each detection is of an object that another one, of a higher score, has found.

    Two detections are of one object if their boxes, and their masks if there are any, have an IoU
    of 0.5 or more, whatever their classes.

    Args:
        boxes: [N, 4] x1, y1, x2, y2.
        scores: [N].
        masks: N RLEs, or [N, H, W] with values above 0.5 inside.

    Returns:
        [N].
    """
    again = np.zeros(len(boxes), bool)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    areas = sides.prod(axis=1)
    kept: list[int] = []
    for i in np.argsort(-np.asarray(scores, np.float64), kind="stable").tolist():
        overlaps = _iou(boxes[i], areas[i], boxes[kept], areas[kept])
        same = np.asarray(kept, np.int64)[overlaps >= SAME].tolist()
        again[i] = any(masks is None or _mask_iou(masks[i], masks[j]) >= SAME for j in same)
        if not again[i]:
            kept.append(i)
    return again


def _iou(
    box: NDArray[np.float64],
    area: float,
    others: NDArray[np.float64],
    areas: NDArray[np.float64],
) -> NDArray[np.float64]:
    begin = np.maximum(box[:2], others[:, :2])
    end = np.minimum(box[2:], others[:, 2:])
    shared = np.maximum(end - begin, 0).prod(axis=1)
    return shared / np.maximum(area + areas - shared, 1e-9)


def _mask_iou(one: Any, other: Any) -> float:
    both = [_rle(one), _rle(other)]
    together = rle.area(rle.union(both))
    return (sum(map(rle.area, both)) - together) / max(together, 1)


def _rle(mask: Any) -> RLE:
    if isinstance(mask, dict):
        return cast(RLE, mask)
    return rle.encode((np.asarray(mask) > 0.5).astype(np.uint8))
