"""Labels beside boxes: readable on any background, inside the picture, clear of each other."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFont

from autotimm.structures import InputError
from autotimm.visualize.colours import Colour

Plate = tuple[int, int, int, int]  # x1, y1, x2, y2 of the rectangle that a label covers


def write_label(
    pen: ImageDraw.ImageDraw,
    text: str,
    box: list[float],
    plates: NDArray[np.int64],
    colour: Colour,
    font: ImageFont.FreeTypeFont,
) -> Plate:
    """Write ``text`` on a plate of ``colour`` beside a box, clear of the ``plates`` so far.

    Returns:
        The new plate.
    """
    left, _, right, _ = font.getbbox(text)
    pad = max(1, round(font.size / 6))
    size = (round(right - left) + 2 * pad, round(font.size) + 2 * pad)
    x1, y1, x2, y2 = plate = _free_plate(size, box, plates, pen.im.size)
    pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
    # Black letters on light plates and white ones on dark plates, by Rec. 601 luma.
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    ink = (0, 0, 0) if luma > 140 else (255, 255, 255)
    pen.text((x1 + pad - left, (y1 + y2) / 2), text, fill=ink, font=font, anchor="lm")
    return plate


@lru_cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """The scalable font that Pillow contains, so that pictures look alike on every machine.

    Args:
        size: in pixels.
    """
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise InputError("this build of Pillow has no FreeType: pip install a wheel of Pillow")
    return font


def _free_plate(
    size: tuple[int, int], box: list[float], taken: NDArray[np.int64], limits: tuple[int, int]
) -> Plate:
    """Find a place for a label at a corner of its box and inside the picture.

    The first of five places that overlaps no other label wins, above the upper left corner before
    the others. If all overlap, the label goes there all the same.
    """
    width, height = size
    x1, y1, x2, y2 = box
    above = y1 - height if y1 >= height else y1
    places = [(x1, above), (x1, y1), (x2 - width, above), (x1, y2), (x2 - width, y2 - height)]
    options: list[Plate] = []
    for x, y in places:
        left = round(max(0, min(x, limits[0] - width)))
        top = round(max(0, min(y, limits[1] - height)))
        right, bottom = left + width, top + height
        options.append((left, top, right, bottom))
        beside = (taken[:, 0] >= right) | (taken[:, 2] <= left)
        if (beside | (taken[:, 1] >= bottom) | (taken[:, 3] <= top)).all():
            return options[-1]
    return options[0]
