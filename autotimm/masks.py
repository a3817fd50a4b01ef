"""Masks as COCO's run-length encoding (RLE): made from annotations, measured, cropped.

Invariants: an RLE made here equals pycocotools' ``annToRLE`` pixel for pixel; its counts are text,
its runs fill its size exactly. Pixel (row i, column j) covers the square from (j, i) to (j + 1, i +
1); its centre is at (j + 0.5, i + 0.5), as for COCO's polygons and boxes. Nothing here trusts its
input: pycocotools reads runs and polygons without checks, so everything is checked before it gets
there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as _coco

from autotimm.structures import MASK_CROP, RLE

_FAR = 1e6  # pixels; pycocotools walks along edges in steps of 1/5 pixel and keeps them as C ints
_LONG = 4e6  # pixels of outline; each costs pycocotools some 100 bytes


def to_rle(segmentation: Any, height: int, width: int) -> RLE:
    """Turns the ``segmentation`` of a COCO annotation into a compressed RLE.

    Args:
        segmentation: polygons (a list of ``[x1, y1, x2, y2, ...]``, in pixels), an uncompressed RLE
            (counts are a list) or a compressed one (counts are text).
        height: of the image, in pixels.
        width: of the image, in pixels.

    Raises:
        ValueError: it is none of the three or does not fit the image; the message is a short
            reason.
    """
    if isinstance(segmentation, dict):
        return _checked_rle(segmentation, height, width)
    if not isinstance(segmentation, list):
        raise ValueError("segmentation is neither polygons nor RLE")
    if not segmentation:
        raise ValueError("segmentation is empty")
    for polygon in segmentation:
        check_polygon(polygon)
    return from_polygons(segmentation, height, width)


def from_polygons(polygons: Sequence[Any], height: int, width: int) -> RLE:
    """Rasterises polygons that ``check_polygon`` passed: their union, by pycocotools."""
    rles = _coco.frPyObjects(polygons, height, width)
    return _text(rles[0] if len(rles) == 1 else _coco.merge(rles))


def check_polygon(polygon: Any) -> tuple[float, float]:
    """Checks that this is ``[x1, y1, x2, y2, ...]``; returns the lowest and highest coordinate.

    Raises:
        ValueError: it is not; the message is a short reason.
    """
    if not isinstance(polygon, list):
        raise ValueError("polygon is not a list of numbers")
    if len(polygon) < 6:
        raise ValueError("polygon with fewer than 3 points")
    if len(polygon) % 2:
        raise ValueError("polygon with an odd number of coordinates")
    try:
        low, high, finite = min(polygon), max(polygon), math.isfinite(sum(polygon))
    except (TypeError, OverflowError):
        raise ValueError("polygon is not a list of numbers") from None
    if not finite:
        raise ValueError("polygon with a coordinate that is not finite")
    if low < -_FAR or high > _FAR:
        raise ValueError("polygon far outside the image")
    if (high - low) * len(polygon) > _LONG and _outline(np.asarray(polygon, np.float64)) > _LONG:
        raise ValueError("polygon outline too long")
    return low, high


def encode(mask: np.ndarray) -> RLE:
    """Encodes a dense mask [h, w] of uint8 or bool, non-zero inside, as a compressed RLE."""
    if mask.ndim != 2:
        raise ValueError(f"a mask has two dimensions, this one {mask.ndim}")
    return _text(_coco.encode(np.asfortranarray(mask != 0).view(np.uint8)))


def decode(rle: RLE) -> np.ndarray:
    """Decodes an RLE into a dense mask [h, w], uint8 of 0 and 1, C-contiguous."""
    return np.ascontiguousarray(_coco.decode(rle))


def area(rle: RLE) -> int:
    """Returns the number of pixels inside the mask."""
    return int(_coco.area(rle))


def box(rle: RLE) -> list[float]:
    """Returns the tight box of the mask, x1, y1, x2, y2 in pixels; zeros for an empty mask."""
    x, y, w, h = _coco.toBbox(rle).tolist()
    return [x, y, x + w, y + h]


def crop(
    rle: RLE,
    polygons: Sequence[Sequence[float]] | None,
    matrix: np.ndarray,
    box: Sequence[float] | np.ndarray,  # the field's name for it
    size: int = MASK_CROP,
) -> np.ndarray:
    """Resamples the part of a mask that lies inside a box into a square.

    Where there are polygons, they are moved into the square and rasterised there: an outline finer
    than the image's own pixels, and cheap. Otherwise the runs are looked up at the cells' centres;
    no dense mask is made either way.

    Args:
        rle: the mask, in pixels of the original image.
        polygons: the same mask as polygons, where the source had them.
        matrix: [2, 3] float64, an invertible affine map from original to canvas pixels.
        box: x1, y1, x2, y2 in canvas pixels.
        size: side of the square, in cells.

    Returns:
        [size, size] uint8; cell (i, j) is 1 where the mask covers the centre of that cell of the
        box.

    Raises:
        ValueError: the box has no area.
    """
    x1, y1, x2, y2 = (float(side) for side in box)
    if not (x2 > x1 and y2 > y1):
        raise ValueError(f"cannot crop a mask to the box {[x1, y1, x2, y2]}, which has no area")
    to_cells = np.diag([size / (x2 - x1), size / (y2 - y1)])  # canvas pixels -> cells, linear part
    linear = to_cells @ matrix[:, :2]
    shift = to_cells @ (matrix[:, 2] - (x1, y1))
    if polygons:
        moved = [(np.reshape(p, (-1, 2)) @ linear.T + shift).ravel() for p in polygons]
        # A box that is tiny beside its polygons magnifies them so much that the runs are quicker.
        if sum(map(_outline, moved)) < 100 * size and max(np.abs(p).max() for p in moved) < _FAR:
            return decode(from_polygons(moved, size, size))
    inverse = np.linalg.inv(linear)
    centres = np.arange(size) + 0.5
    xy = (
        inverse @ np.stack(np.meshgrid(centres, centres)).reshape(2, -1)
        - (inverse @ shift)[:, None]
    )
    return _covers(rle, xy[0], xy[1]).reshape(size, size)


def _covers(rle: RLE, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Tells for each point, in pixels, whether the mask covers it: uint8 of 0 and 1."""
    height, width = rle["size"]
    column, row = np.floor(x), np.floor(y)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    position = np.where(inside, column * height + row, 0).astype(np.int64)  # runs go down columns
    run = np.searchsorted(np.cumsum(_runs(rle["counts"])), position, side="right")
    return ((run & 1) * inside).astype(np.uint8)  # runs of 0 and of 1 take turns, 0 first


def _runs(counts: str) -> np.ndarray:
    """Reads the run lengths, int64, from compressed counts (cocoapi's ``rleFrString``).

    A number is 5 bits a character, lowest first, from "0" on; 32 means that more follow, 16 in the
    last one a negative number. From the fourth on, a number is the difference to the one before the
    last.
    """
    codes = np.frombuffer(counts.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("RLE counts are broken")
    last = np.flatnonzero(codes < 32)
    first = np.concatenate(([0], last[:-1] + 1))
    place = np.arange(codes.size) - np.repeat(first, last - first + 1)
    if place.max() > 6:  # 35 bits: more than any image needs
        raise ValueError("RLE counts are broken")
    runs = np.add.reduceat((codes & 31) << (5 * place), first)
    runs -= np.where(codes[last] & 16, np.int64(1) << (5 * (place[last] + 1)), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _checked_rle(segmentation: dict[str, Any], height: int, width: int) -> RLE:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2 or size != [height, width]:
        raise ValueError("RLE of another size than the image")
    if isinstance(counts, str):
        runs = _runs(counts)
    elif isinstance(counts, list):
        try:
            runs = np.asarray(counts)
        except (ValueError, OverflowError):
            raise ValueError("RLE counts are broken") from None
        if runs.ndim != 1 or runs.dtype.kind not in "iu":
            raise ValueError("RLE counts are broken")
    else:
        raise ValueError("RLE without counts")
    if runs.size == 0 or runs.min() < 0 or runs.max() > height * width:
        raise ValueError("RLE counts are broken")
    if runs.sum() != height * width:
        raise ValueError("RLE counts do not fill the image")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts}
    return _text(_coco.frPyObjects({"size": [height, width], "counts": counts}, height, width))


def _outline(polygon: np.ndarray) -> float:
    """Length of a flat polygon's outline, the larger of |dx| and |dy| for each edge."""
    points = polygon.reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _text(rle: dict[str, Any]) -> RLE:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
