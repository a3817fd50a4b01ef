"""A sample: an image on its canvas with the boxes, labels and mask crops of its instances.

``transforms.py`` has the geometry; here the annotations follow the pixels, and those of which too
little is left are no training targets. The records may come from anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autotimm.augmentation.presets import Augmentation, recolor
from autotimm.augmentation.transforms import (
    LEAST_SIDE,
    Placement,
    fit,
    jitter,
    place_boxes,
    render,
)
from autotimm.coco import masks
from autotimm.images.decode import DataError
from autotimm.structures import RLE, Annotation, InputError, Record, is_trained_on

LEAST_VISIBLE = 0.1  # share of the box; instances of which less is visible are no training targets


@dataclass(slots=True)
class Sample:
    """One image on its canvas, with its N instances; ``collate`` makes batches from these."""

    image: np.ndarray  # [H, W, 3] uint8 RGB
    record: Record
    scale: tuple[float, float]
    offset: tuple[float, float]
    boxes: np.ndarray  # [N, 4] float32, canvas pixels
    labels: np.ndarray  # [N] int64
    masks: np.ndarray | None  # [N, MASK_CROP, MASK_CROP] uint8
    target: dict[str, Any] | None = None  # ``collate.target``, in evaluation only
    annotations: list[Annotation] = field(default_factory=list)  # [N]; empty in custom pipelines
    placement: Placement | None = None  # None in custom pipelines
    fill: tuple[int, int, int] = (0, 0, 0)  # colour to pad the canvas to the size of its batch


def training_sample(
    image: np.ndarray,
    record: Record,
    labels: dict[int, int],
    canvas: tuple[int, int],
    augmentation: Augmentation,
    rng: np.random.Generator,
    *,
    resize: str,
    fill: tuple[int, int, int],
    with_masks: bool,
    interpolation: str = "bilinear",
) -> Sample:
    """Makes an augmented sample without crowds.

    Args:
        image: [height, width, 3] uint8 RGB, of the record's size.
        record: the image's record.
        labels: category id -> label.
        canvas: height and width.
        augmentation: what to change, and how much.
        rng: the source of all random numbers.
        resize: one of RESIZES.
        fill: colour of the canvas, R, G and B.
        with_masks: whether to crop the masks.
        interpolation: one of INTERPOLATIONS.

    Raises:
        DataError: an annotation cannot be used.
    """
    placement = jitter(record["width"], record["height"], canvas, resize, augmentation, rng)
    pixels = render(image, placement, canvas, fill, interpolation)
    x1, y1, x2, y2 = placement.place
    recolor(pixels[y1:y2, x1:x2], augmentation, rng)
    return _with_instances(pixels, record, labels, placement, with_masks)


def evaluation_sample(
    image: np.ndarray,
    record: Record,
    labels: dict[int, int],
    canvas: tuple[int, int],
    *,
    resize: str,
    fill: tuple[int, int, int],
    with_masks: bool,
    interpolation: str = "bilinear",
) -> Sample:
    """Makes a sample of the whole image, only resized; arguments as in ``training_sample``."""
    placement = fit(record["width"], record["height"], canvas, resize)
    pixels = render(image, placement, canvas, fill, interpolation)
    return _with_instances(pixels, record, labels, placement, with_masks)


def _with_instances(
    pixels: np.ndarray,
    record: Record,
    labels: dict[int, int],
    placement: Placement,
    with_masks: bool,
) -> Sample:
    annotations = [a for a in record["annotations"] if is_trained_on(a)]
    xywh = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    boxes, left = place_boxes(xywh, placement, record["width"], record["height"])
    matrix = placement.matrix
    kept = left >= LEAST_VISIBLE
    cut = np.flatnonzero(kept & (left < 0.999))  # the visible part may not fill the clipped box
    crops = crops_of([annotations[i] for i in cut], matrix, boxes[cut])
    for i, crop in zip(cut, crops, strict=True):
        tight = tighten(boxes[i], crop)
        kept[i] = tight is not None
        if tight is not None:
            boxes[i] = tight
    annotations = [a for a, keep in zip(annotations, kept, strict=True) if keep]
    boxes = boxes[kept]
    return Sample(
        image=pixels,
        record=record,
        scale=placement.scale,
        offset=(float(matrix[0, 2]), float(matrix[1, 2])),
        boxes=boxes.astype(np.float32),
        labels=np.array([label_of(a["category_id"], labels) for a in annotations], dtype=np.int64),
        masks=crops_of(annotations, matrix, boxes) if with_masks else None,
        annotations=annotations,
        placement=placement,
    )


def label_of(category_id: int, labels: dict[int, int]) -> int:
    """The label of a category.

    Raises:
        InputError: there is no such category. Not a DataError, because the fault is in the
            categories, and skipping the sample would hide it.
    """
    if category_id not in labels:
        raise InputError(
            f"an annotation has category id {category_id}, which is not among the data's "
            "categories: add it to them (in shards: manifest.json), or run autotimm-shard again"
        )
    return labels[category_id]


def checked_rle(annotation: Annotation, record: Record) -> RLE:
    """The mask of an annotation of an untrusted record.

    Raises:
        DataError: the runs of the RLE do not fill the image.
    """
    try:
        return masks.to_rle(annotation["segmentation"], record["height"], record["width"])
    except ValueError as error:
        raise DataError(f"annotation {annotation['id']}: {error}") from error


def crops_of(annotations: list[Annotation], matrix: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Calls ``masks.crops`` for annotations.

    Args:
        annotations: N annotations.
        matrix: [2, 3] float64, from pixels of the image to pixels of the canvas.
        boxes: [N, 4] float64, x1, y1, x2, y2 on the canvas.

    Returns:
        [N, MASK_CROP, MASK_CROP] uint8, the mask in each box.

    Raises:
        DataError: a mask is damaged.
    """
    try:
        return masks.crops([a["segmentation"] for a in annotations], matrix, boxes)
    except ValueError as error:
        raise DataError(f"the mask of an annotation: {error}") from error


def tighten(box: np.ndarray, crop: np.ndarray) -> np.ndarray | None:
    """The bounding box of the mask in ``crop``, within ``box``; None if it is too small.

    Args:
        box: [4] x1, y1, x2, y2 on the canvas.
        crop: [S, S] the mask in the box.
    """
    rows, columns = np.flatnonzero(crop.any(axis=1)), np.flatnonzero(crop.any(axis=0))
    if not len(rows):
        return None
    cell = (box[2:] - box[:2]) / crop.shape[0]
    low = box[:2] + cell * (columns[0], rows[0])
    high = box[:2] + cell * (columns[-1] + 1, rows[-1] + 1)
    return np.concatenate([low, high]) if (high - low).min() >= LEAST_SIDE else None
