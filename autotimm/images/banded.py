"""PIL's images as arrays, in bands of rows.

At once, PIL would hold up to three more copies of an image: its own, the pieces of bytes that it
hands over, and these joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

BAND = 2**21
"""Pixels of a band: so few that each is copied in memory that the one before had. Fresh memory
would take the system many times as long as the copy."""
_WHOLE = 2**23  # pixels; images of as many or fewer are one band


def bands(height: int, width: int, pixels: int = BAND) -> Iterator[slice]:
    """Yields the rows of each band of an image."""
    rows = max(pixels // max(width, 1), 1)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def array_of(
    image: Image.Image, change: Callable[[Image.Image], Image.Image] = lambda band: band
) -> np.ndarray:
    """A new array [H, W] or [H, W, C] with an image's pixels.

    Args:
        image: to read; PIL may decode it only now.
        change: applied to each band; it gives each pixel a value that depends on no other pixel.
    """
    width, height = image.size
    if width * height <= _WHOLE:
        return np.array(change(image))
    whole = np.zeros(0)
    for rows in bands(height, width):
        part = np.asarray(change(image.crop((0, rows.start, width, rows.stop))))
        if not whole.size:
            whole = np.empty((height, *part.shape[1:]), part.dtype)
        whole[rows] = part
    return whole
