"""The sizes at which pictures are drawn: small images larger, so that their labels can be read."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 640
"""Pixels: the longest side that a picture has at least, whose labels are to be read."""


def resized(image: Any, factor: float) -> NDArray[np.uint8]:
    """An image [H, W, 3] uint8 whose sides are ``factor`` times as long, at least 1 pixel each."""
    image = np.asarray(image)
    height, width = (max(round(side * factor), 1) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), np.uint8)


def enlarged(image: Any, side: int = SIDE) -> NDArray[np.uint8]:
    """An image [H, W, 3] uint8 with a longest side of at least ``side`` pixels."""
    return resized(image, max(side / max(np.shape(image)[:2]), 1.0))


def scaled_window(
    x: int, y: int, inside: NDArray[np.uint8], size: tuple[int, int], wanted: tuple[int, int]
) -> tuple[int, int, NDArray[np.uint8]]:
    """A part of a mask, scaled with the mask: each new pixel is the old one at its centre.

    Args:
        x: the left of the part, in pixels of the mask.
        y: its top.
        inside: the part, [h, w] of 0 and 1.
        size: height and width of the mask.
        wanted: height and width of the scaled mask.

    Returns:
        Left, top and pixels of the part in the scaled mask.
    """
    if size == wanted:
        return x, y, inside
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(wanted, size, strict=True)
    )
    top, bottom = np.searchsorted(rows, (y, y + inside.shape[0])).tolist()
    left, right = np.searchsorted(columns, (x, x + inside.shape[1])).tolist()
    part = inside[rows[top:bottom, None] - y, columns[None, left:right] - x]
    return left, top, np.ascontiguousarray(part)
