"""Places an image with its boxes and mask crops on the canvas.

The geometry is one ``Placement``: an integer window of the image is resized onto an integer
rectangle of the canvas, perhaps flipped. So one resize reads only the visible pixels, and the
affine matrix for boxes and masks is exact. All random numbers come from the generator that is
passed in.

Axes: an image is [height, width, 3] uint8 RGB; points are x, y in pixels, where pixel 0 covers 0 to
1, as in COCO's boxes and polygons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from autotimm.augmentation.presets import Augmentation, recolor
from autotimm.coco import masks
from autotimm.images import buffers
from autotimm.images.decode import DataError
from autotimm.structures import RLE, Annotation, InputError, Record, is_trained_on

RESIZES = ("letterbox", "stretch")
INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_LEAST_SIDE = 1.0  # canvas pixels; instances with a shorter side are no training targets
LEAST_VISIBLE = 0.1  # share of the box; instances of which less is visible are no training targets
_AREA_BELOW = 0.7  # scale; above it bilinear skips hardly a pixel, and is six times as fast


@dataclass(frozen=True, slots=True)
class Placement:
    """A window of the image and its place on the canvas, as x1, y1, x2, y2 in whole pixels."""

    window: tuple[int, int, int, int]  # of the image
    place: tuple[int, int, int, int]  # on the canvas
    flip: bool = False

    @property
    def scale(self) -> tuple[float, float]:
        """Canvas pixels for each pixel of the image, in x and in y; positive also with a flip."""
        wx1, wy1, wx2, wy2 = self.window
        px1, py1, px2, py2 = self.place
        return (px2 - px1) / (wx2 - wx1), (py2 - py1) / (wy2 - wy1)

    @property
    def matrix(self) -> np.ndarray:
        """The affine matrix [2, 3] float64 from pixels of the image to pixels of the canvas."""
        (sx, sy), (wx1, wy1, *_), (px1, py1, px2, _) = self.scale, self.window, self.place
        x = (-sx, px2 + wx1 * sx) if self.flip else (sx, px1 - wx1 * sx)
        return np.array([[x[0], 0.0, x[1]], [0.0, sy, py1 - wy1 * sy]])


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


def fit(width: int, height: int, canvas: tuple[int, int], resize: str) -> Placement:
    """Places the whole image at the top left of the canvas.

    Args:
        width: of the image.
        height: of the image.
        canvas: height and width.
        resize: "letterbox" keeps the aspect ratio, "stretch" fills the canvas.
    """
    sx, sy = _fitting_scale(width, height, canvas, resize)
    new = max(round(width * sx), 1), max(round(height * sy), 1)
    return Placement((0, 0, width, height), (0, 0, *new))


def jitter(
    width: int,
    height: int,
    canvas: tuple[int, int],
    resize: str,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> Placement:
    """Places the image like ``fit``, but with a random size, position and flip."""
    low, high = augmentation.scale
    if augmentation.linear_scale:
        factor = rng.uniform(low, high)
    else:
        factor = math.exp(rng.uniform(math.log(low), math.log(high)))
    sx, sy = _fitting_scale(width, height, canvas, resize)
    wx1, wx2, px1, px2 = _span(width, canvas[1], sx * factor, rng.random())
    wy1, wy2, py1, py2 = _span(height, canvas[0], sy * factor, rng.random())
    flip = bool(rng.random() < augmentation.flip)
    return Placement((wx1, wy1, wx2, wy2), (px1, py1, px2, py2), flip)


def render(
    image: np.ndarray,
    placement: Placement,
    canvas: tuple[int, int],
    fill: tuple[int, int, int],
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Draws the image [height, width, 3] on a canvas [H, W, 3] of the colour ``fill``."""
    wx1, wy1, wx2, wy2 = placement.window
    px1, py1, px2, py2 = placement.place
    part = image[wy1:wy2, wx1:wx2]
    size = (px2 - px1, py2 - py1)
    out = buffers.empty((*canvas, 3))
    row = _row(canvas[1], fill)
    out[:py1], out[py2:] = row, row  # fills only what the image will not cover
    out[py1:py2, :px1], out[py1:py2, px2:] = row[:px1], row[px2:]
    place = out[py1:py2, px1:px2]
    if size == (wx2 - wx1, wy2 - wy1):
        np.copyto(place, part)
    else:
        shrinks = min(placement.scale) < _AREA_BELOW
        how = cv2.INTER_AREA if shrinks else INTERPOLATIONS[interpolation]
        cv2.resize(part, size, dst=place, interpolation=how)
    if placement.flip:
        cv2.flip(place, 1, dst=place)
    return out


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


def place_boxes(
    boxes: np.ndarray, placement: Placement, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Maps boxes to the canvas and clips them to the visible part of the image.

    Args:
        boxes: [N, 4] float64, x, y, w, h in pixels of the image.
        placement: of the image.
        width: of the image.
        height: of the image.

    Returns:
        The boxes [N, 4] float64, x1, y1, x2, y2 on the canvas; and [N] float64, the visible share
        of each box's area within the image, or 0 if a side is shorter than one canvas pixel.
    """
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    corners = corners.clip(0, np.array([width, height] * 2))
    (ax, _, bx), (_, ay, by) = placement.matrix
    whole = corners * (ax, ay, ax, ay) + (bx, by, bx, by)
    if placement.flip:
        whole = whole[:, [2, 1, 0, 3]]
    x1, y1, x2, y2 = placement.place
    seen = whole.clip((x1, y1, x1, y1), (x2, y2, x2, y2))
    sides, full = seen[:, 2:] - seen[:, :2], whole[:, 2:] - whole[:, :2]
    share = sides.prod(axis=1) / np.maximum(full.prod(axis=1), 1e-9)
    return seen, np.where(sides.min(axis=1, initial=np.inf) >= _LEAST_SIDE, share, 0.0)


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
    return np.concatenate([low, high]) if (high - low).min() >= _LEAST_SIDE else None


def _fitting_scale(
    width: int, height: int, canvas: tuple[int, int], resize: str
) -> tuple[float, float]:
    sx, sy = canvas[1] / width, canvas[0] / height
    return (sx, sy) if resize == "stretch" else (min(sx, sy), min(sx, sy))


def _span(length: int, canvas: int, scale: float, chance: float) -> tuple[int, int, int, int]:
    """Places one axis: returns from and to in pixels of the image, and in those of the canvas."""
    size = max(round(length * scale), 1)
    if size <= canvas:
        start = int(chance * (canvas - size + 1))
        return 0, length, start, start + size
    seen = min(max(round(canvas / scale), 1), length)
    start = int(chance * (length - seen + 1))
    return start, start + seen, 0, canvas


@lru_cache(maxsize=8)
def _row(width: int, fill: tuple[int, int, int]) -> np.ndarray:
    return np.full((width, 3), fill, np.uint8)
