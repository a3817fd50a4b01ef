"""Labels beside boxes: readable on any background, inside the picture, clear of what it shows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFont

from autotimm.structures import InputError
from autotimm.visualize.colours import Colour

Plate = tuple[int, int, int, int]  # x1, y1, x2, y2 of the rectangle that a label covers

_OBJECT, _LABEL = 1, 2  # what takes a pixel


class Space:
    """The pixels of a picture that objects and labels take.

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        self._taken = np.zeros((height, width), np.uint8)

    def add_object(self, x: int, y: int, inside: NDArray[np.uint8]) -> None:
        """Take the pixels of an object: a part of a mask with its left and top."""
        height, width = inside.shape
        part = self._taken[y : y + height, x : x + width]
        np.copyto(part, _OBJECT, where=inside > 0)

    def add_box(self, box: list[float]) -> None:
        """Take all pixels of a box x1, y1, x2, y2, of an object without a mask."""
        x1, y1, x2, y2 = (max(round(side), 0) for side in box)
        self._taken[y1:y2, x1:x2] = _OBJECT

    def place(self, size: tuple[int, int], box: list[float]) -> Plate:
        """Find and take a place inside the picture for a label at its box.

        The place that covers the fewest pixels of other labels wins, of several the one that covers
        the fewest of objects, of several the first: above the box before all others.

        Args:
            size: width and height of the label.
            box: x1, y1, x2, y2.
        """
        best: tuple[tuple[int, int], Plate] | None = None
        for left, top in self._places(size, box):
            part = self._taken[top : top + size[1], left : left + size[0]]
            cost = (int((part == _LABEL).sum()), int((part == _OBJECT).sum()))
            if best is None or cost < best[0]:
                best = (cost, (left, top, left + size[0], top + size[1]))
            if cost == (0, 0):
                break
        assert best is not None
        x1, y1, x2, y2 = best[1]
        self._taken[y1:y2, x1:x2] = _LABEL
        return best[1]

    def _places(self, size: tuple[int, int], box: list[float]) -> Iterator[tuple[int, int]]:
        """Left and top of each place at a box, from the best on, moved into the picture."""
        (width, height), (x1, y1, x2, y2) = size, box
        across, down = (x1, x2 - width, (x1 + x2 - width) / 2), (y1, y2 - height)
        places = [(x, y1 - height) for x in across] + [(x, y2) for x in across]
        places += [(x, y) for x in (x2, x1 - width) for y in down]
        places += [(x, y) for y in down for x in across]  # inside
        limits = (self._taken.shape[1] - width, self._taken.shape[0] - height)
        for x, y in places:
            yield round(max(0, min(x, limits[0]))), round(max(0, min(y, limits[1])))


def write_label(
    pen: ImageDraw.ImageDraw,
    text: str,
    box: list[float],
    space: Space,
    colour: Colour,
    font: ImageFont.FreeTypeFont,
) -> None:
    """Write ``text`` on a plate of ``colour`` beside a box, where there is the most space."""
    left, _, right, _ = font.getbbox(text)
    pad = max(1, round(font.size / 6))
    size = (round(right - left) + 2 * pad, round(font.size) + 2 * pad)
    x1, y1, x2, y2 = space.place(size, box)
    pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
    # Black letters on light plates and white ones on dark plates, by Rec. 601 luma.
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    ink = (0, 0, 0) if luma > 140 else (255, 255, 255)
    pen.text((x1 + pad - left, (y1 + y2) / 2), text, fill=ink, font=font, anchor="lm")


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
