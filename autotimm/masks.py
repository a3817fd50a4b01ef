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
from itertools import chain
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
    """Like ``crops``, of one mask: [size, size] uint8."""
    return crops([(rle, polygons)], matrix, np.array([box], np.float64), size)[0]


def crops(
    instances: Sequence[tuple[RLE, Sequence[Sequence[float]] | None]],
    matrix: np.ndarray,
    boxes: np.ndarray,
    size: int = MASK_CROP,
) -> np.ndarray:
    """Resamples of each mask the part that lies inside a box into a square.

    Where there are polygons, they are moved into the square and rasterised there: an outline finer
    than the image's own pixels, and cheap. Otherwise the runs are looked up at the cells' centres;
    no dense mask is made either way.

    Args:
        instances: N masks, in pixels of the original image, each with the same mask as polygons,
            which ``check_polygon`` has passed, where the source had them.
        matrix: [2, 3] float64, an invertible affine map from original to canvas pixels.
        boxes: [N, 4] float64, x1, y1, x2, y2 in canvas pixels.
        size: side of the squares, in cells.

    Returns:
        [N, size, size] uint8; cell (i, j) is 1 where the mask covers the centre of that cell of the
        box.

    Raises:
        ValueError: a box has no area.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    if not (sides > 0).all():
        bad = boxes[~(sides > 0).all(axis=1)][0].tolist()
        raise ValueError(f"cannot crop a mask to the box {bad}, which has no area")
    scale = size / sides  # canvas pixels -> cells
    linear = scale[:, :, None] * matrix[:, :2]  # original pixels -> cells
    shift = scale * (matrix[:, 2] - boxes[:, :2])
    out = np.empty((len(instances), size, size), np.uint8)
    drawn = np.array([bool(polygons) for _, polygons in instances], np.bool_)
    if drawn.any():
        which = np.flatnonzero(drawn)
        polygons = [polygons for _, polygons in instances if polygons]
        drawn[which] = _draw(polygons, linear, shift, which, out)
    for n in np.flatnonzero(~drawn).tolist():
        out[n] = _look_up(instances[n][0], linear[n], shift[n], size)
    return out


def _draw(
    polygons: Sequence[Sequence[Sequence[float]]],
    linear: np.ndarray,
    shift: np.ndarray,
    which: np.ndarray,
    out: np.ndarray,
) -> np.ndarray:
    """Draws instances of polygons into the squares ``which`` [n] of ``out`` [N, size, size].

    Returns:
        [n] bool: False for those that were not drawn, as their runs are the quicker way.
    """
    parts = [part for instance in polygons for part in instance]
    square = np.repeat(which, [len(instance) for instance in polygons])
    lengths = np.array([len(part) for part in parts]) // 2
    ends = np.cumsum(lengths)
    starts = ends - lengths
    flat = np.fromiter(chain.from_iterable(parts), np.float64, 2 * int(ends[-1]))
    of_point = np.repeat(square, lengths)
    x, y = flat[::2], flat[1::2]
    (a, b), (c, d) = linear[of_point].transpose(1, 2, 0)
    points = np.stack([a * x + b * y, c * x + d * y], axis=1) + shift[of_point]

    # A box that is tiny beside its polygons magnifies them so much that the runs are quicker.
    following = np.arange(1, len(points) + 1)
    following[ends - 1] = starts
    steps = np.abs(points[following] - points).max(axis=1)
    first = np.searchsorted(of_point, which)
    short = np.add.reduceat(steps, first) < 100 * out.shape[1]
    short &= np.maximum.reduceat(np.abs(points).max(axis=1), first) < _FAR

    flat = points.ravel()
    bounds = zip(square.tolist(), (2 * starts).tolist(), (2 * ends).tolist(), strict=True)
    drawn = set(which[short].tolist())
    kept = [(n, flat[start:end]) for n, start, end in bounds if n in drawn]
    if kept:
        squares = _coco.decode(_coco.frPyObjects([part for _, part in kept], *out.shape[1:]))
        for part, (n, _) in enumerate(kept):
            if n in drawn:
                out[n] = squares[:, :, part]
                drawn.remove(n)
            else:  # an instance is the union of its parts
                out[n] |= squares[:, :, part]
    return short


def _look_up(rle: RLE, linear: np.ndarray, shift: np.ndarray, size: int) -> np.ndarray:
    """Tells for each cell's centre whether the mask covers it: [size, size] uint8 of 0 and 1."""
    height, width = rle["size"]
    (a, b), (c, d) = np.linalg.inv(linear)
    centres = np.arange(size) + 0.5
    u, v = (centres - shift[0])[:, None], centres - shift[1]  # [x, y], as runs go down columns
    # Most maps do not turn: then a column depends on u alone and a row on v, and both stay small.
    column = np.floor(a * u + b * v if b else a * u)
    row = np.floor(c * u + d * v if c else d * v)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    position = column.clip(0, width - 1) * height + row.clip(0, height - 1)
    position = position.astype(np.int64).ravel()
    order = np.argsort(position, kind="stable")  # next to nothing where they are in order
    # Runs of 0 and of 1 take turns, 0 first: each start flips all that follows.
    starts = np.searchsorted(position[order], np.cumsum(_runs(rle["counts"]))[:-1])
    flips = np.bincount(starts, minlength=position.size + 1)[:-1]
    covered = np.empty(position.size, np.uint8)
    covered[order] = np.cumsum(flips) & 1
    return (covered.reshape(size, size) & inside).T


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
