"""Which one is wrong where a polygon and its bbox do not agree.

A bbox that fits its polygon only once x and y change places may be wrong itself; so may one that
fits upside down. Where one of the two leaves the image and the other does not, that one is wrong;
else the picture alone tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autotimm.coco import boxes

SWAPPED = "polygon has y before x"
_OUT = "bbox holds its mask and leaves the image"
_OUTSIDE = 1.5  # pixels by which rounding may take a box or polygon out of its image
_EITHER = ("as y, x, h, w", "with y counted from below")
"""Readings of a bbox that may be readings of its polygon as well."""


def of_axes(polygons: list[Any], bbox: Any) -> list[float] | None:
    """Reads two lists as the x and the y of one polygon, where only so they fit the bbox.

    Args:
        polygons: a segmentation, as the COCO file has it.
        bbox: likewise.

    Returns:
        x, y, x, y, ... of the polygon; None where the bbox does not tell that it is one.
    """
    if len(polygons) != 2:
        return None
    xs, ys = polygons
    if not (type(xs) is type(ys) is list and len(xs) == len(ys) >= 3):
        return None
    box = _corners(bbox)
    both = [number for value in (*xs, *ys) if (number := boxes.number(value)) is not None]
    if box is None or len(both) < 2 * len(xs):
        return None
    xs, ys = both[: len(xs)], both[len(xs) :]
    as_given = min(both[::2]), min(both[1::2]), max(both[::2]), max(both[1::2])
    drawable = len(xs) >= 6 and len(xs) % 2 == 0  # as two polygons
    if drawable and boxes.is_close(box, as_given):
        return None
    if not boxes.is_close(box, (min(xs), min(ys), max(xs), max(ys))):
        return None
    return [side for point in zip(xs, ys, strict=True) for side in point]


def swapped(extent: Sequence[float] | None, bbox: Any) -> bool:
    """Tells whether a polygon, box x1, y1, x2, y2 in pixels, fits its bbox with y before x."""
    box = _corners(bbox)
    if box is None or extent is None:
        return False
    x1, y1, x2, y2 = extent
    return boxes.is_close(box, (y1, x1, y2, x2))


def disagreement(
    bbox: Sequence[float],
    tight: Sequence[float],
    extent: Sequence[float] | None,
    height: int,
    width: int,
    take_masks: bool,
) -> str | None:
    """Says what is wrong with a bbox that does not agree with its mask, or with its polygons.

    Args:
        bbox: x, y, w, h in pixels, as a file has it.
        tight: box of the mask, x1, y1, x2, y2 in pixels.
        extent: box of the polygons that the mask was made from, x1, y1, x2, y2 in pixels; None
            where it was made from none.
        height: of the image, in pixels.
        width: of the image, in pixels.
        take_masks: whether the mask's box takes the place of the bbox.

    Returns:
        The kind of the problem, with what is done; None where the box holds all of the mask.
    """
    wrong = extent and _polygon_fault(bbox, extent, height, width)
    fault = f"{boxes.FAR}, as its {wrong}" if wrong else boxes.fault(bbox, tight, height, width)
    if fault is None and not (extent and _leaves(extent, height, width)):  # counted by itself
        x, y, w, h = bbox
        fault = _OUT if _leaves((x, y, x + w, y + h), height, width) else None
    if fault is None or take_masks:
        return fault and f"{fault} (mask's taken)"
    if wrong:
        return f"{fault} (kept; write a polygon as x1, y1, x2, y2, ...)"
    either = extent and fault.endswith(_EITHER) and _other_reading(bbox, extent, height, width)
    if either:
        way_out = "autotimm preview shows which is wrong; --boxes mask takes the mask's"
        return f"{fault}, or its polygon {either} (kept; {way_out})"
    return f"{fault} (kept; --boxes mask takes the mask's)"


def _polygon_fault(
    bbox: Sequence[float],
    extent: Sequence[float],
    height: int,
    width: int,
) -> str | None:
    """Says what is wrong with a polygon where it is not the bbox."""
    x, y, w, h = bbox
    outside = _leaves(extent, height, width) and not _leaves((x, y, x + w, y + h), height, width)
    return SWAPPED if outside and swapped(extent, bbox) else None


def _other_reading(
    bbox: Sequence[float], extent: Sequence[float], height: int, width: int
) -> str | None:
    """Says how a polygon would fit its bbox, unless it is the bbox that leaves the image."""
    x, y, w, h = bbox
    box, (x1, y1, x2, y2) = (x, y, x + w, y + h), extent
    if _leaves(box, height, width):
        return None
    if swapped(extent, bbox):
        return "has y before x"
    return "has its y so" if boxes.is_close(box, (x1, height - y2, x2, height - y1)) else None


def _leaves(box: Sequence[float], height: int, width: int) -> bool:
    x1, y1, x2, y2 = box
    return min(x1, y1) < -_OUTSIDE or x2 > width + _OUTSIDE or y2 > height + _OUTSIDE


def _corners(bbox: Any) -> boxes.Box | None:
    """The corners of a bbox; None where it is none."""
    if type(bbox) is not list or len(bbox) != 4 or None in map(boxes.number, bbox):
        return None
    x, y, w, h = (float(side) for side in bbox)
    return x, y, x + w, y + h
