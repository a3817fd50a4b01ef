"""A picture and a fill for tests of what is drawn on a canvas."""

from __future__ import annotations

import numpy as np

FILL = (124, 116, 104)


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    """A smooth image whose values differ in every place and channel."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 2], axis=-1).astype(np.uint8)
