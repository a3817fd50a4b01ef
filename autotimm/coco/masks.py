"""Masks as COCO's run-length encoding (RLE): made from annotations, measured, cropped.

Invariants: an RLE made here equals pycocotools' ``annToRLE`` byte for byte; its counts are text,
its runs fill its size exactly. Pixel (row i, column j) covers the square from (j, i) to (j + 1, i +
1); its centre is at (j + 0.5, i + 0.5), as for COCO's polygons and boxes. Nothing here trusts its
input: hotcoco rasterises NaN and infinity as if they were places, and pycocotools, with which
others may read our shards, takes all memory for them. Polygons and runs are checked before a
library gets them.

hotcoco is given one mask at a time. Its ``iou``, and its ``area`` of thousands of masks, run on
threads, which a process does not have that was forked after its parent had started them: a data
loader's worker would wait for them for ever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import hotcoco
import numpy as np

from autotimm.coco.runs import between, edges, look_up, read_one, read_runs
from autotimm.structures import MASK_CROP, RLE

_coco: Any = hotcoco.mask  # its stubs want dicts, which a TypedDict such as RLE is not
_FAR = 1e6  # pixels; the libraries keep fifths of a pixel in 32 bits
_LONGEST = 2**32 - 1  # pixels of a run; the libraries keep them in 32 bits
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
    """Rasterises polygons that ``check_polygon`` passed: their union, of at least one."""
    if len(polygons) == 1:
        return _text(_coco.fr_poly(polygons[0], height, width))
    return _text(_coco.merge([_coco.fr_poly(polygon, height, width) for polygon in polygons]))


def check_polygon(polygon: Any) -> tuple[float, float, float, float]:
    """Checks that this is ``[x1, y1, x2, y2, ...]``; returns its box x1, y1, x2, y2 in pixels.

    Raises:
        ValueError: it is not; the message is a short reason.
    """
    if not isinstance(polygon, list):
        raise ValueError("polygon is not a list of numbers")
    if len(polygon) < 6:
        raise ValueError("polygon with fewer than 3 points")
    if len(polygon) % 2:
        raise ValueError("polygon with an odd number of coordinates")
    xs, ys = polygon[::2], polygon[1::2]
    try:
        finite = math.isfinite(sum(polygon))
        left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    except (TypeError, OverflowError):
        raise ValueError("polygon is not a list of numbers") from None
    if not finite:
        raise ValueError("polygon with a coordinate that is not finite")
    low, high = left if left < top else top, right if right > bottom else bottom
    if low < -_FAR or high > _FAR:
        raise ValueError("polygon far outside the image")
    if (high - low) * len(polygon) > _LONG and _outline(np.asarray(polygon, np.float64)) > _LONG:
        raise ValueError("polygon outline too long")
    return left, top, right, bottom


def empty(height: int, width: int) -> RLE:
    """The mask of no pixel."""
    return _compressed(np.array([height * width]), height, width)


def encode(mask: np.ndarray) -> RLE:
    """Encodes a dense mask [h, w] of uint8 or bool, non-zero inside, as a compressed RLE."""
    if mask.ndim != 2:
        raise ValueError(f"a mask has two dimensions, this one {mask.ndim}")
    return _text(_coco.encode(np.asfortranarray(mask != 0).view(np.uint8)))


def encode_window(inside: np.ndarray, top: int, left: int, height: int, width: int) -> RLE:
    """Encodes a mask that is zero but for a window, without making the whole of it.

    Args:
        inside: [h, w] of uint8 or bool, non-zero inside.
        top, left: where in the mask the window begins; all of it lies inside.
        height, width: of the mask.
    """
    h, w = inside.shape
    if not (0 <= top <= height - h and 0 <= left <= width - w):
        raise ValueError(f"a window of {(h, w)} at {(top, left)} leaves {(height, width)}")
    columns = np.zeros((w, h + 2), np.bool_)
    columns[:, 1:-1] = inside.T != 0
    windows = np.array([[0, top, left, h, w]])
    return from_edges(edges(columns.ravel(), windows, height, width), 1, height, width)[0]


def from_edges(found: np.ndarray, count: int, height: int, width: int) -> list[RLE]:
    """The RLEs of ``count`` masks, of what ``runs.edges`` found in all of them."""
    return [_compressed(runs, height, width) for runs in between(found, count, height * width)]


def decode(rle: RLE) -> np.ndarray:
    """Decodes an RLE into a dense mask [h, w], uint8 of 0 and 1, C-contiguous."""
    return np.ascontiguousarray(_coco.decode(rle))


def decode_window(rle: RLE) -> tuple[int, int, np.ndarray]:
    """The left and top of a mask's tight box, and the mask [h, w] uint8 of 0 and 1 inside it.

    Far quicker than ``decode`` for a small mask of a large picture: COCO's columns are turned into
    rows inside the box alone.
    """
    x1, y1, x2, y2 = (int(side) for side in box(rle))
    return x1, y1, np.ascontiguousarray(_coco.decode(rle)[y1:y2, x1:x2])


def sampled(rle: RLE, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """What a mask says at some of its rows and columns, without making all of it.

    Args:
        rle: the mask.
        rows, columns: numbers of its rows [h] and columns [w], ascending, at least one of each.

    Returns:
        [h, w] uint8 of 0 and 1.
    """
    (runs,), _ = read_runs([rle["counts"]])
    out = np.zeros((len(columns), len(rows)), np.uint8)  # runs go down the columns
    look_up(runs, rle["size"][0], columns, rows, out)
    return out.T


def union(rles: Sequence[RLE]) -> RLE:
    """All pixels of masks of one size, at least one."""
    return _text(_coco.merge(rles))


def difference(rle: RLE, other: RLE) -> RLE:
    """The pixels of a mask that another one of its size does not cover."""
    (runs,), _ = read_runs([other["counts"]])
    # Runs begin with one of 0: what comes in front of the first one swaps 0 and 1.
    swapped = runs[1:] if runs[0] == 0 else np.concatenate(([0], runs))
    return _text(_coco.merge([rle, _compressed(swapped, *other["size"])], intersect=True))


def area(rle: RLE) -> int:
    """Returns the number of pixels inside the mask."""
    return int(_coco.area(rle))


def box(rle: RLE) -> list[float]:
    """Returns the tight box of the mask, x1, y1, x2, y2 in pixels; zeros for an empty mask."""
    x, y, w, h = _coco.toBbox(rle).tolist()
    return [x, y, x + w, y + h]


def crop(
    rle: RLE,
    matrix: np.ndarray,
    box: Sequence[float] | np.ndarray,  # the field's name for it
    size: int = MASK_CROP,
) -> np.ndarray:
    """Like ``crops``, of one mask: [size, size] uint8."""
    return crops([rle], matrix, np.array([box], np.float64), size)[0]


def crops(
    rles: Sequence[RLE], matrix: np.ndarray, boxes: np.ndarray, size: int = MASK_CROP
) -> np.ndarray:
    """Resamples of each mask the part that lies inside a box into a square.

    The runs are looked up at the cells' centres, and no dense mask is made: what comes out is what
    the nearest pixel of the dense mask says. Polygons, drawn into the square, would have a finer
    outline, but one that is not the mask that detections are measured by: of objects below 16
    pixels, a tenth of the area would differ.

    Args:
        rles: N masks of one size, in pixels of the original image.
        matrix: [2, 3] float64, from original to canvas pixels; it scales, mirrors and moves, but
            does not turn.
        boxes: [N, 4] float64, x1, y1, x2, y2 in canvas pixels.
        size: side of the squares, in cells.

    Returns:
        [N, size, size] uint8; cell (i, j) is 1 where the mask covers the centre of that cell of the
        box.

    Raises:
        ValueError: a box has no area, or counts are broken or do not fill the image.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    if not (sides > 0).all():
        bad = boxes[~(sides > 0).all(axis=1)][0].tolist()
        raise ValueError(f"cannot crop a mask to the box {bad}, which has no area")
    out = np.zeros((len(rles), size, size), np.uint8)
    if not len(rles):
        return out
    height, width = rles[0]["size"]
    centres = boxes[:, :2, None] + sides[:, :, None] * ((np.arange(size) + 0.5) / size)
    scale = matrix[[0, 1], [0, 1]]
    pixels = (centres - matrix[:, 2, None]) / scale[:, None]  # [N, 2, size], of the original image
    # Runs go down the columns, from left to right.
    upward = out[:, :: 1 if scale[1] > 0 else -1, :: 1 if scale[0] > 0 else -1].transpose(0, 2, 1)
    pixels.sort(axis=2)
    within = (pixels >= 0) & (pixels < [[width], [height]])
    first, last = within.argmax(axis=2).tolist(), within.sum(axis=2).tolist()
    columns, rows = pixels.astype(np.int64).transpose(1, 0, 2)
    every, pixels_in_all = read_runs([rle["counts"] for rle in rles])
    if (pixels_in_all != height * width).any():
        raise ValueError("RLE counts do not fill the image")
    for n, runs in enumerate(every):
        (j, i), (wide, high) = first[n], last[n]
        if wide and high:
            square = upward[n, j : j + wide, i : i + high]
            look_up(runs, height, columns[n, j : j + wide], rows[n, i : i + high], square)
    return out


def _checked_rle(segmentation: dict[str, Any], height: int, width: int) -> RLE:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2 or size != [height, width]:
        raise ValueError("RLE of another size than the image")
    runs: list[int] | np.ndarray
    if isinstance(counts, str):
        runs = read_one(counts)
    elif isinstance(counts, list):
        try:
            runs = np.asarray(counts)
        except (ValueError, OverflowError):
            raise ValueError("RLE counts are broken") from None
        if runs.ndim != 1 or runs.dtype.kind not in "iu":
            raise ValueError("RLE counts are broken")
    else:
        raise ValueError("RLE without counts")
    if len(runs) == 0:
        raise ValueError("RLE counts are broken")
    if isinstance(runs, list):
        fewest, most, total = min(runs), max(runs), sum(runs)
    else:
        fewest, most, total = runs.min(), runs.max(), runs.sum()
    if fewest < 0 or most > min(height * width, _LONGEST):
        raise ValueError("RLE counts are broken")
    if total != height * width:
        raise ValueError("RLE counts do not fill the image")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts}
    return _compressed(runs, height, width)


def _compressed(runs: list[int] | np.ndarray, height: int, width: int) -> RLE:
    """The RLE of run lengths that fill its size."""
    # hotcoco takes twice as long to read an array.
    counts = runs if isinstance(runs, list) else runs.tolist()
    return _text(_coco.frPyObjects({"size": [height, width], "counts": counts}, height, width))


def _outline(polygon: np.ndarray) -> float:
    """Length of a flat polygon's outline, the larger of |dx| and |dy| for each edge."""
    points = polygon.reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _text(rle: dict[str, Any]) -> RLE:
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
