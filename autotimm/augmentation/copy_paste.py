"""Objects of one training sample on top of another.

Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation",
2021: a random subset of one image's objects is put on another one, both varied on their own; what
is covered is cut out of the masks below, boxes follow, and what is hardly seen any more is dropped.
Edges are not blended, which the paper found to make no difference.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from autotimm.augmentation.transforms import (
    LEAST_VISIBLE,
    Placement,
    Sample,
    checked_rle,
    crops_of,
    tighten,
)
from autotimm.coco import masks
from autotimm.images.decode import DataError
from autotimm.structures import Annotation


def paste(base: Sample, other: Sample, rng: np.random.Generator) -> Sample:
    """Puts some of the other sample's instances, at least one, on the base, whose image changes.

    Each has one chance in two. A crowd is never pasted.

    Args:
        base: of ``transforms.training_sample``.
        other: likewise, on a canvas of the same size.
        rng: where chance comes from.

    Returns:
        The base's sample, its own instances first; the base itself if the other has none, or one
        that cannot be used, which is told of where the other's own turn is.

    Raises:
        DataError: an annotation of the base cannot be used; its image is as it was.
    """
    count = len(other.labels)
    chosen = rng.random(count) < 0.5
    lucky = rng.integers(max(count, 1))
    if not count:
        return base
    chosen[lucky] = True
    try:
        cover = _cover(other, chosen)
    except DataError:
        return base
    kept, boxes, crops = _still_seen(base, cover)
    cv2.copyTo(other.image, cover.view(np.uint8), base.image)
    parts = [a for a, yes in zip(other.annotations, chosen, strict=True) if yes]
    both = None
    if base.masks is not None and other.masks is not None:
        both = np.concatenate([crops[kept], other.masks[chosen]])
    return replace(
        base,
        boxes=np.concatenate([boxes[kept], other.boxes[chosen]]),
        labels=np.concatenate([base.labels[kept], other.labels[chosen]]),
        masks=both,
        annotations=[a for a, yes in zip(base.annotations, kept, strict=True) if yes] + parts,
    )


def _cover(sample: Sample, chosen: np.ndarray) -> np.ndarray:
    """[H, W] bool: the canvas pixels of the chosen instances."""
    placement = _placed(sample)
    pairs = zip(sample.annotations, chosen, strict=True)
    union = masks.decode(masks.union([checked_rle(a, sample.record) for a, yes in pairs if yes]))
    wx1, wy1, wx2, wy2 = placement.window
    px1, py1, px2, py2 = placement.place
    # Nearest by the pixels' centres, as masks are cropped.
    part = cv2.resize(
        union[wy1:wy2, wx1:wx2], (px2 - px1, py2 - py1), interpolation=cv2.INTER_NEAREST_EXACT
    )
    cover = np.zeros(sample.image.shape[:2], np.bool_)
    cover[py1:py2, px1:px2] = part[:, ::-1] if placement.flip else part
    return cover


def _still_seen(sample: Sample, cover: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is left of a sample's instances below a cover [H, W].

    Returns:
        [N] bool, whether enough is left; their boxes [N, 4] float32; their masks [N, S, S] uint8.
    """
    boxes, matrix = sample.boxes.copy(), _placed(sample).matrix
    crops = _crops(sample.annotations, matrix, boxes) if sample.masks is None else sample.masks
    kept = np.ones(len(boxes), np.bool_)
    for n, box in enumerate(sample.boxes):
        seen = _below(crops[n], box, cover)
        if (seen == crops[n]).all():
            continue
        tight = tighten(box.astype(np.float64), seen)
        kept[n] = tight is not None and seen.sum() >= LEAST_VISIBLE * crops[n].sum()
        if kept[n]:
            boxes[n] = tight
            again = _crops([sample.annotations[n]], matrix, boxes[n : n + 1])[0]
            crops[n] = _below(again, boxes[n], cover)
    return kept, boxes, crops


def _below(crop: np.ndarray, box: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """The mask [S, S] in a box without what is covered at its cells' centres."""
    size = len(crop)
    sides = (box[2:] - box[:2])[:, None]
    x, y = (box[:2, None] + sides * ((np.arange(size) + 0.5) / size)).astype(np.int64)
    rows, columns = (v.clip(0, n - 1) for v, n in zip((y, x), cover.shape, strict=True))
    return crop & ~cover[np.ix_(rows, columns)]


def _crops(annotations: list[Annotation], matrix: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    return crops_of(annotations, matrix, boxes.astype(np.float64))


def _placed(sample: Sample) -> Placement:
    if sample.placement is None:
        raise ValueError("a sample of a custom pipeline has no placement")
    return sample.placement
