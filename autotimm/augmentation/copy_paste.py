"""Copy-paste augmentation: pastes objects of one training sample onto another.

After Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance
Segmentation", 2021: both images are augmented independently, then a random subset of the objects of
one is pasted onto the other. The pasted pixels are removed from the masks below, boxes shrink
accordingly, and instances that are hardly visible any more are dropped. Edges are not blended,
because the paper found that it makes no difference.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from autotimm.augmentation.sample import LEAST_VISIBLE, Sample, checked_rle, crops_of, tighten
from autotimm.augmentation.transforms import Placement
from autotimm.coco import masks
from autotimm.images.decode import DataError
from autotimm.structures import Annotation


def paste(base: Sample, other: Sample, rng: np.random.Generator) -> Sample:
    """Pastes instances of another sample, each with probability 1/2 but at least one, onto a base.

    The image of the base is changed in place. Crowds are never pasted.

    Args:
        base: from ``sample.training_sample``.
        other: from ``sample.training_sample``, on a canvas of the same size.
        rng: the source of all random numbers.

    Returns:
        The new sample, the base's own instances first. The base itself if the other sample has no
        instances, or a damaged mask, which is reported when the other sample is read on its own.

    Raises:
        DataError: an annotation of the base cannot be used; its image is unchanged then.
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
    kept, boxes, crops = _uncovered(base, cover)
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
    """The canvas pixels [H, W] bool that the chosen instances cover."""
    placement = _placed(sample)
    pairs = zip(sample.annotations, chosen, strict=True)
    union = masks.decode(masks.union([checked_rle(a, sample.record) for a, yes in pairs if yes]))
    wx1, wy1, wx2, wy2 = placement.window
    px1, py1, px2, py2 = placement.place
    # Nearest neighbour by pixel centres, the sampling of the mask crops.
    part = cv2.resize(
        union[wy1:wy2, wx1:wx2], (px2 - px1, py2 - py1), interpolation=cv2.INTER_NEAREST_EXACT
    )
    cover = np.zeros(sample.image.shape[:2], np.bool_)
    cover[py1:py2, px1:px2] = part[:, ::-1] if placement.flip else part
    return cover


def _uncovered(sample: Sample, cover: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Removes a cover [H, W] bool from a sample's N instances.

    Returns:
        [N] bool, whether enough of the instance is visible; boxes [N, 4] float32; and masks
        [N, S, S] uint8.
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
    """The mask [S, S] in a box without the cells whose centres are covered."""
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
