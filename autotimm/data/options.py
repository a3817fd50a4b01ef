"""Checks of the data module's arguments: each returns the value, or says what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autotimm.data.custom import Transforms
from autotimm.structures import InputError

STRIDE = 32
"""Sides of the canvas are multiples of this, so that every level of a backbone divides evenly."""


def canvas(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of the canvas in pixels, rounded up to multiples of ``STRIDE``.

    Args:
        image_size: one side for both, or height and width.

    Raises:
        InputError: it is neither, or out of range.
    """
    sides = list(image_size) if isinstance(image_size, list | tuple) else [image_size] * 2
    if (
        len(sides) != 2
        or any(isinstance(s, bool) or not isinstance(s, int) for s in sides)
        or not all(STRIDE <= s <= 16384 for s in sides)
    ):
        raise InputError(
            f"image_size is {image_size!r}, but must be a number of pixels, or height and width, "
            f"from {STRIDE} to 16384"
        )
    height, width = (-(-s // STRIDE) * STRIDE for s in sides)
    return height, width


def whole(name: str, value: int, least: int, most: int = 2**32 - 1) -> int:
    """A whole number from ``least`` to ``most``; InputError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}, but must be a whole number, {least} or more")
    if value > most:
        raise InputError(f"{name} is {value}, but must be {most} or less")
    return value


def three(
    name: str, values: Sequence[float], above: float = -math.inf
) -> tuple[float, float, float]:
    """Three finite numbers, of R, G and B, all above a bound; InputError if they are not."""
    try:
        red, green, blue = (float(v) for v in values)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {values!r}, but must be three numbers") from None
    if not math.isfinite(red + green + blue):
        raise InputError(f"{name} is {values!r}, but must be three finite numbers")
    if min(red, green, blue) <= above:
        raise InputError(f"{name} is {values!r}, but must be above {above:g}")
    return red, green, blue


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """One of the choices; InputError, which names them, if it is none."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}, but must be one of {', '.join(choices)}")
    return value


def pipeline(value: Transforms | None) -> Transforms | None:
    """A custom pipeline, or none; InputError if it is something else."""
    if value is not None and not callable(value):
        raise InputError(
            f"custom_train_transforms is {value!r}, but must be an albumentations Compose"
        )
    return value
