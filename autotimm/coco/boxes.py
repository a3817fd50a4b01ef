"""Whether the box of an annotation goes with its mask, and what else its four numbers may mean.

A box may differ from its mask's own for good reasons: it was rounded, or it is amodal, so that it
holds hidden parts of the object too. One that lies elsewhere teaches the wrong place, and mostly
comes of a convention that is not COCO's: then another reading of the numbers gives the mask's box.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

FAR = "bbox is far from its mask"
"""How the kind of such a problem begins; ``checks.check_annotation`` counts them."""

NUMBER = r"(?a)\s*[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?\s*"
"""A number as JSON or CSV writes it, as a pattern; Python's ``float`` also takes 1_000 and more."""

_MOST = 1e15  # NaN and infinity are not below it
_PIXELS = 1.5  # by which a box may be off, whatever its size: rounding, or counting from 1
_CLOSE = 0.75  # IoU from which another reading gives the mask's box
_LOOSE = 0.05  # share of the mask's sides by which it may stick out of a box that holds all of it

Box = tuple[float, float, float, float]


def read(value: Any) -> tuple[Any, str | None]:
    """Reads a box that may have been written in an odd way.

    Args:
        value: ``bbox``, as a file has it.

    Returns:
        Four finite numbers, with what was mended, where it can mean these only; else the value.
    """
    found, kind = value, None
    if isinstance(found, dict) and {"x", "y"} < found.keys() and len(found) == 4:
        sides = next((s for s in (("width", "height"), ("w", "h")) if {*s} < found.keys()), None)
        if sides is not None:
            found, kind = [found[k] for k in ("x", "y", *sides)], "bbox of named sides (read)"
    elif isinstance(found, list) and len(found) == 1 and isinstance(found[0], list):
        found, kind = found[0], "bbox in more lists than one (read)"
    if not isinstance(found, list) or len(found) != 4:
        return value, None
    if any(isinstance(side, str) for side in found):
        kind = kind or "bbox of numbers in quotes (read)"
    numbers = [number(side) for side in found]
    return (value, None) if kind is None or None in numbers else (numbers, kind)


def number(value: Any) -> float | None:
    """Reads a number below 1e15, also one in quotes; None if it is none."""
    if isinstance(value, str):
        value = float(value) if re.fullmatch(NUMBER, value) else None
    return value if type(value) in (int, float) and abs(value) < _MOST else None


def agrees(bbox: Sequence[float], mask: Sequence[float]) -> bool:
    """Returns whether a box is about its mask's own: an IoU of 0.5, or every side 1.5 pixels off.

    Args:
        bbox: x, y, w, h in pixels.
        mask: box of the mask, x1, y1, x2, y2 in pixels.
    """
    x, y, w, h = bbox
    left, top, right, bottom = mask
    if (  # first, as nearly every box is near, and this is asked of every annotation
        -_PIXELS <= x - left <= _PIXELS
        and -_PIXELS <= y - top <= _PIXELS
        and -_PIXELS <= x + w - right <= _PIXELS
        and -_PIXELS <= y + h - bottom <= _PIXELS
    ):
        return True
    wide = min(x + w, right) - max(x, left)
    high = min(y + h, bottom) - max(y, top)
    return wide > 0 and high > 0 and 3 * wide * high >= w * h + (right - left) * (bottom - top)


def fault(bbox: Sequence[float], mask: Sequence[float], height: int, width: int) -> str | None:
    """Says what is wrong with a box that does not agree with its mask.

    Args:
        bbox: four numbers that should be x, y, w, h in pixels.
        mask: box of the mask, x1, y1, x2, y2 in pixels.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        ``FAR``, with the reading that gives the mask's box, if there is one; None where the box
        holds all of the mask, as amodal ones do.
    """
    held = _holds(bbox, mask)
    for name, box in _readings(bbox, mask, height, width):
        # A box that holds the mask has one such reading alone: w and h are x2 and y2.
        if is_close(box, mask) and (not held or name == _CORNERS):
            return f"{FAR}, fits {name}"
    return None if held else FAR


def is_close(box: Sequence[float], mask: Sequence[float]) -> bool:
    """Returns whether two boxes x1, y1, x2, y2 are one but for rounding."""
    wide = min(box[2], mask[2]) - max(box[0], mask[0])
    high = min(box[3], mask[3]) - max(box[1], mask[1])
    if wide > 0 and high > 0:
        both = (box[2] - box[0]) * (box[3] - box[1]) + (mask[2] - mask[0]) * (mask[3] - mask[1])
        if wide * high >= _CLOSE * (both - wide * high):
            return True
    return _is_near(box, mask)


_CORNERS = "as x1, y1, x2, y2"


def _readings(
    bbox: Sequence[float], mask: Sequence[float], height: int, width: int
) -> Iterator[tuple[str, Box]]:
    """Yields what else the numbers may mean: its name, and the box x1, y1, x2, y2 in pixels."""
    a, b, c, d = bbox
    if max(map(abs, bbox)) <= 1:
        sides = (width, height, width, height)
        shares: list[tuple[str, Box]] = [
            ("x, y, w, h", (a, b, a + c, b + d)),
            ("centre x, centre y, w, h (YOLO's)", (a - c / 2, b - d / 2, a + c / 2, b + d / 2)),
            ("x1, y1, x2, y2", (a, b, c, d)),
        ]
        for name, (x1, y1, x2, y2) in shares:
            x1, y1, x2, y2 = (v * side for v, side in zip((x1, y1, x2, y2), sides, strict=True))
            yield f"as {name} in shares of the image", (x1, y1, x2, y2)
        return
    yield _CORNERS, (a, b, c, d)
    yield "with y counted from below", (a, height - b - d, a + c, height - b)
    yield "with y counted from below", (a, height - b, a + c, height - b + d)
    yield "as centre x, centre y, w, h", (a - c / 2, b - d / 2, a + c / 2, b + d / 2)
    yield "as y1, x1, y2, x2", (b, a, d, c)
    yield "as y, x, h, w", (b, a, b + d, a + c)
    if c > 0 and d > 0:
        x_scale, y_scale = (mask[2] - mask[0]) / c, (mask[3] - mask[1]) / d
        x, y = a * x_scale, b * y_scale
        yield "at another scale", (x, y, x + mask[2] - mask[0], y + mask[3] - mask[1])


def _is_near(box: Sequence[float], mask: Sequence[float]) -> bool:
    return all(abs(one - other) <= _PIXELS for one, other in zip(box, mask, strict=True))


def _holds(bbox: Sequence[float], mask: Sequence[float]) -> bool:
    x, y, w, h = bbox
    left, top, right, bottom = mask
    spare_x = max(_PIXELS, _LOOSE * (right - left))
    spare_y = max(_PIXELS, _LOOSE * (bottom - top))
    return (
        x <= left + spare_x
        and y <= top + spare_y
        and x + w >= right - spare_x
        and y + h >= bottom - spare_y
    )
