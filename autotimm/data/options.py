"""Checks of the data module's arguments; each returns the parsed value or raises an InputError."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Sequence
from typing import Any

from autotimm.augmentation.transforms import RESIZES
from autotimm.streaming.buckets import Canvases
from autotimm.structures import InputError, brief

STRIDE = 32
"""Sides of the canvas are multiples of this, so that every backbone level has a whole size."""
NARROW = 0.8
"""The short side with ``aspect_buckets=True``, as a share: photographs are 3:4 or narrower."""
SCALES = (0.6, 0.7, 0.8, 0.9)
"""The canvases of ``multi_scale=True`` besides image_size, as shares of it."""
MOST_CANVASES = 8
"""The largest number of canvases; a compiled model is compiled once for each."""


def canvas(image_size: int | Sequence[int], name: str = "image_size") -> tuple[int, int]:
    """Height and width of the canvas in pixels, rounded up to multiples of ``STRIDE``.

    Args:
        image_size: the side of a square, or height and width.
        name: of the argument, for the message.

    Raises:
        InputError: the value is neither, or out of range.
    """
    sides: Any = image_size if isinstance(image_size, list | tuple) else [image_size] * 2
    if (
        len(sides) != 2
        or any(isinstance(s, bool) or not isinstance(s, int) for s in sides)
        or not all(STRIDE <= s <= 16384 for s in sides)
    ):
        raise InputError(
            f"{name} is {brief(image_size)}, but must be a number of pixels, or height and width, "
            f"from {STRIDE} to 16384"
        )
    height, width = (-(-s // STRIDE) * STRIDE for s in sides)
    return height, width


def canvases(
    aspect_buckets: bool | Sequence[Sequence[int]], image_size: tuple[int, int], resize: str
) -> Canvases:
    """The canvases of aspect-ratio buckets, that of ``image_size`` first; empty if False.

    Args:
        aspect_buckets: True for two narrower canvases besides a square one, a list of heights and
            widths, or False.
        image_size: height and width of the largest canvas.
        resize: one of ``transforms.RESIZES``.

    Raises:
        InputError: the value is not a list of canvases, a canvas would be of no use, or ``resize``
            is not "letterbox".
    """
    if aspect_buckets is False:
        return ()
    one_of("resize", resize, RESIZES)
    if resize != "letterbox":
        raise InputError(
            f"aspect_buckets needs resize='letterbox': {brief(resize)} leaves no padding to save"
        )
    height, width = image_size
    if aspect_buckets is True:
        if height != width:
            raise InputError(
                f"aspect_buckets=True needs a square image_size, not {height} x {width}: give the "
                f"list of canvases, as [[{height}, {width}], ...]"
            )
        narrow = round(NARROW * height / STRIDE) * STRIDE
        found = [(narrow, width), (height, narrow)]
    elif isinstance(aspect_buckets, list | tuple):
        found = [canvas(pair, "a canvas of aspect_buckets") for pair in aspect_buckets]
    else:
        raise InputError(
            f"aspect_buckets is {brief(aspect_buckets)}, but must be true, false or a list of "
            "canvases"
        )
    found = _others("aspect_buckets", found, image_size)
    for h, w in found:
        if h > height or w > width or (h < height and w < width):
            raise InputError(
                f"aspect_buckets: {h} x {w} must have one side of image_size, {height} x {width}, "
                "and the other smaller: no image would be as large on it"
            )
    return image_size, *found


def scales(
    multi_scale: bool | Sequence[int | Sequence[int]], image_size: tuple[int, int]
) -> Canvases:
    """The canvases from which a training step draws, that of ``image_size`` first; empty if False.

    Args:
        multi_scale: True for ``SCALES`` of image_size, a list of sides, or of heights and widths,
            or False.
        image_size: height and width of the largest canvas.

    Raises:
        InputError: the value is not a list of canvases, a canvas is larger than image_size, or
            there are too many.
    """
    if multi_scale is False:
        return ()
    if multi_scale is True:
        found = [canvas([max(round(s * n), STRIDE) for s in image_size]) for n in SCALES]
    elif isinstance(multi_scale, list | tuple):
        found = [canvas(size, "a size of multi_scale") for size in multi_scale]
    else:
        raise InputError(
            f"multi_scale is {brief(multi_scale)}, but must be true, false or a list of sizes in "
            "pixels"
        )
    found = _others("multi_scale", found, image_size)
    for height, width in found:
        if height > image_size[0] or width > image_size[1]:
            raise InputError(
                f"multi_scale: {height} x {width} is larger than image_size, {image_size[0]} x "
                f"{image_size[1]}: set image_size to the largest"
            )
    return image_size, *found


def _others(
    name: str, found: Sequence[tuple[int, int]], image_size: tuple[int, int]
) -> list[tuple[int, int]]:
    """The distinct canvases besides ``image_size``; InputError if there are none or too many."""
    others = [size for size in dict.fromkeys(found) if size != image_size]
    if not others:
        raise InputError(
            f"{name} has no canvas besides that of image_size, {image_size[0]} x {image_size[1]}, "
            "to choose from: leave it out, or take a larger image_size"
        )
    if len(others) >= MOST_CANVASES:
        raise InputError(
            f"{name} has {len(others)} canvases besides that of image_size, but fewer than "
            f"{MOST_CANVASES} are possible"
        )
    return others


def share(name: str, value: Any) -> float:
    """Checks a number from 0 to 1; InputError if the value is not one."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:  # before float(), which a huge integer overflows
        raise InputError(f"{name} is {brief(value)}, but must be a number from 0 to 1")
    return float(value)


def minutes(name: str, value: Any) -> float:
    """A time in minutes, 0 or more and finite."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 <= value <= sys.float_info.max:
        raise InputError(f"{name} is {brief(value)}, but must be a number of minutes, 0 or more")
    return float(value)


def whole(name: str, value: int, least: int, most: int = 2**32 - 1) -> int:
    """Checks a whole number from ``least`` to ``most``; InputError if the value is not one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {brief(value)}, but must be a whole number, {least} or more")
    if value > most:
        raise InputError(f"{name} is {brief(value)}, but must be {most} or less")
    return value


def three(
    name: str, values: Sequence[float], above: float = -math.inf
) -> tuple[float, float, float]:
    """Checks three finite numbers, for R, G and B, all above a bound; InputError if they differ."""
    try:
        red, green, blue = (float(v) for v in values)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} is {brief(values)}, but must be three numbers") from None
    if not math.isfinite(red + green + blue):
        raise InputError(f"{name} is {brief(values)}, but must be three finite numbers")
    if min(red, green, blue) <= above:
        raise InputError(f"{name} is {brief(values)}, but must be above {above:g}")
    return red, green, blue


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """Checks one of several choices; InputError, which lists them, for any other value."""
    if value not in choices:
        raise InputError(f"{name} is {brief(value)}, but must be one of {', '.join(choices)}")
    return value
