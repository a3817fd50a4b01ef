"""The geometry of an image on the canvas: where it goes, its pixels, its boxes.

The geometry is one ``Placement``: an integer window of the image is resized onto an integer
rectangle of the canvas, perhaps flipped. So one resize reads only the visible pixels, and the
affine matrix for boxes and masks is exact. All random numbers come from the generator that is
passed in. ``sample.py`` makes samples with it.

Axes: an image is [height, width, 3] uint8 RGB; points are x, y in pixels, where pixel 0 covers 0 to
1, as in COCO's boxes and polygons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from autotimm.augmentation.presets import Augmentation
from autotimm.images import buffers

RESIZES = ("letterbox", "stretch")
INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
LEAST_SIDE = 1.0  # canvas pixels; instances with a shorter side are no training targets
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
    return seen, np.where(sides.min(axis=1, initial=np.inf) >= LEAST_SIDE, share, 0.0)


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
