"""Images of more than 8 bits a channel: which of their values become black and white.

The rule, for integers of 9 to 32 bits and for floats:

1. What a file declares: 12 bits a sample or a MaxSampleValue of 2**n - 1 in a TIFF, significant
   bits (sBIT) in a PNG, the largest value of a PGM. These are all its values, from 0 on.
2. Else one range for the whole data set, found while sharding (``depths.py``) or given by the user.
3. Where neither is known, the range of the image by itself.

A range is found from the least and the greatest value of each image, but for one pixel in 10,000 at
either end, which may be broken. If values begin near 0, it is 0 to the least 2**n - 1, n from 8 on,
that no image exceeds: the camera's bits; floats have 0 to 1 as well, and must use half of what they
get. Otherwise it is from the least to the greatest value.

Pixels whose value a TIFF names as no data (GDAL's tag) do not count, and are black.

Integers fall into 256 bins of equal width, so that a range of 0 to 65535 keeps the upper 8 bits,
and one of 0 to 255 every value. Floats are scaled and rounded. What is no number (NaN) is black.
"""

from __future__ import annotations

from functools import lru_cache
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from autotimm.images.banded import bands
from autotimm.structures import UPPER_BITS, InputError, PixelRange, brief

_STRAY = 10_000  # pixels of which one at either end does not count
_BITS = range(8, 33)
WAY_OUT = "give the values that are black and white as pixel_range (--pixel-range LOW,HIGH)"


class DataError(InputError):
    """A sample of the data set cannot be used. The message names it, and says why."""


class Deep(NamedTuple):
    """The pixels of an image of more than 8 bits a channel.

    Attributes:
        values: [H, W] or [H, W, 3] (RGB), integers or floats.
        white: the largest value that there can be, as the file declares it; None if it does not.
        inverted: whether 0 is white.
        missing: the value of pixels without data, as geographic TIFFs name it; None if none is.
    """

    values: np.ndarray
    white: int | None = None
    inverted: bool = False
    missing: float | None = None

    def extremes(self) -> tuple[float, float]:
        """Returns the smallest and the largest value, without one pixel in 10,000 at either end.

        Raises:
            DataError: no value is a number.
        """
        if self.values.dtype == np.uint16 and self.missing is None:
            return _extremes_by_counting(self.values)
        values = self.values.ravel()
        if self.missing is not None:
            values = values[~_are(values, self.missing)]
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        if not values.size:
            raise DataError("none of the image's pixels is a number")
        stray = values.size // _STRAY
        ends = np.partition(values, (stray, values.size - 1 - stray))
        return float(ends[stray]), float(ends[values.size - 1 - stray])

    def apart(self, low: float, high: float) -> tuple[float, float]:
        """Returns the extremes without a value at either end that lies far from all others.

        Far is more than twice the span of all others: 0 to 4095 beside 65535, or heights of 200 to
        900 beside -9999, which programs write where there are no data.

        Args:
            low: the least value, of ``extremes``.
            high: the greatest.
        """
        within = self.values[(self.values > low) & (self.values < high)]
        if within.size <= self.values.size // _STRAY:
            return low, high
        least, greatest = float(within.min()), float(within.max())
        far = 2 * (greatest - least)
        return (
            least if 0 < far < least - low else low,
            greatest if 0 < far < high - greatest else high,
        )

    def rgb(self, pixel_range: PixelRange) -> np.ndarray:
        """Returns the pixels as [H, W, 3] uint8, by the rule above.

        Raises:
            DataError: no value is a number, or ``pixel_range`` is UPPER_BITS and the values have
                not 16 bits.
        """
        low = high = 0.0
        shift = 0
        if pixel_range == UPPER_BITS:
            shift = _upper_bits_shift(self.values)
        else:
            low, high = self.extremes()
            if self.white is not None:
                low, high = 0, self.white
            elif isinstance(pixel_range, tuple):
                low, high = pixel_range
            else:
                low, high = range_of(low, high, self.values.dtype.kind == "f")
        height, width = self.values.shape[:2]
        pixels = np.empty((height, width, 3), np.uint8)
        for rows in bands(height, width):  # floats of a large image would take gigabytes
            values = self.values[rows]
            if pixel_range == UPPER_BITS:
                grey = (values >> shift).astype(np.uint8)
            else:
                grey = _scaled(values, low, high)
                grey = 255 - grey if self.inverted else grey
                if self.missing is not None:
                    grey = np.where(_are(values, self.missing), np.uint8(0), grey)
            pixels[rows] = grey[..., None] if grey.ndim == 2 else grey
        return pixels


def _are(values: np.ndarray, missing: float) -> np.ndarray:
    # Writers name the value in full, also where the samples have fewer digits.
    return np.isclose(values.astype(np.float64), missing, rtol=1e-6, atol=0)


def range_of(low: float, high: float, floats: bool) -> tuple[float, float]:
    """Returns the values that become black and white, given the extremes of a data set."""
    if 0 <= low <= high / 2:
        steps = [1, *(2**n - 1 for n in _BITS)] if floats else [2**n - 1 for n in _BITS]
        top = next((step for step in steps if high <= step), None)
        if top is not None and (not floats or high > top / 2):
            return 0.0, float(top)
    return (low, high) if high > low else (low, low + 1)


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if values.dtype == np.uint16:
        return _table(low, high)[values]
    return _scale(values, low, high)


@lru_cache(16)
def _table(low: float, high: float) -> np.ndarray:
    return _scale(np.arange(65536, dtype=np.uint16), low, high)


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    exact = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    exact = np.clip(exact, low, high) - low
    if values.dtype.kind != "f" and high - low >= 255:
        return (exact * (256 / (high - low + 1))).astype(np.uint8)
    return np.rint(exact * (255 / (high - low))).astype(np.uint8)


def _extremes_by_counting(values: np.ndarray) -> tuple[float, float]:
    """What :meth:`Deep.extremes` gives, without a copy of the values."""
    counts = np.zeros(2**16, np.int64)
    flat = values.reshape(-1)
    for part in bands(flat.size, 1):
        counts += np.bincount(flat[part], minlength=2**16)
    stray, below = flat.size // _STRAY, counts.cumsum()
    low, high = np.searchsorted(below, (stray, flat.size - 1 - stray), side="right")
    return float(low), float(high)


def _upper_bits_shift(values: np.ndarray) -> int:
    """By how many bits values are to be shifted; DataError if they have no upper 8 of 16."""
    if values.dtype.kind == "f":
        raise DataError(f"the image has floating-point pixels: {WAY_OUT}")
    least, most = values.min(), values.max()
    if least < 0 or most > 65535:
        raise DataError(f"the image has pixels below 0 or above 65535: {WAY_OUT}")
    return 8 if most > 255 or values.ndim == 3 else 0


def checked_range(name: str, value: Any) -> tuple[float, float]:
    """Two finite numbers, the first below the second, as numbers or as text with a comma.

    Raises:
        InputError: they are not; the message begins with ``name``.
    """
    parts = value.split(",") if isinstance(value, str) else value
    try:
        low, high = (float(part) for part in parts)
    except (TypeError, ValueError, OverflowError):
        low = high = 0.0
    if not (low < high and isfinite(high - low) and isfinite(255 / (high - low))):
        raise InputError(
            f"{name} is {brief(value)}, but must be the values that become black and white, the "
            "lower first, such as 0,4095"
        )
    return low, high
