"""Lines around instances: whole ones, and dashed ones for what was found twice."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from autotimm.visualize.colours import Colour

_WHITE, _DARK = (255, 255, 255), (20, 20, 20)
_DASH = 5  # widths of a line: how long each dash is, and each gap


def draw_box(
    picture: NDArray[np.uint8], box: Sequence[float], colour: Colour, line: int, dashed: bool
) -> None:
    """Draw a box x1, y1, x2, y2 into ``picture``; its right and lower sides lie inside of it."""
    x1, y1, x2, y2 = (round(side) for side in box)
    x2, y2 = max(x2 - 1, x1), max(y2 - 1, y1)
    if not dashed:
        cv2.rectangle(picture, (x1, y1), (x2, y2), colour, line)
        return
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]
    for begin, end in pairwise(corners):
        _draw_dashes(picture, _points(begin, end, max(picture.shape)), colour, line)


def draw_contours(
    picture: NDArray[np.uint8],
    x: int,
    y: int,
    inside: NDArray[np.uint8],
    colour: Colour,
    line: int,
    dashed: bool,
) -> None:
    """Draw the outlines of a part of a mask, [h, w] with its left at ``x`` and its top at ``y``.

    A whole line has a dark rim, so that it shows on a background of its own colour, too.
    """
    contours, _ = cv2.findContours(inside.copy(), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not dashed:
        # A pixel of rim, as OpenCV draws widths. Smoothing would darken several on either side.
        rim = line + 1 if line < 3 else line + 2
        cv2.drawContours(picture, contours, -1, _DARK, rim, cv2.LINE_8, offset=(x, y))
        cv2.drawContours(picture, contours, -1, colour, line, cv2.LINE_AA, offset=(x, y))
        return
    for contour in contours:
        _draw_dashes(picture, contour.reshape(-1, 2) + np.array([x, y]), colour, line)


def _points(begin: tuple[int, int], end: tuple[int, int], most: int) -> NDArray[np.int64]:
    """The pixels [N, 2] of a level or upright line, as far as a picture can show them."""
    low, high = -most, 2 * most
    (x1, y1), (x2, y2) = np.clip([begin, end], low, high).tolist()
    count = max(abs(x2 - x1), abs(y2 - y1)) + 1
    return np.linspace((x1, y1), (x2, y2), count).round().astype(np.int64)


def _draw_dashes(
    picture: NDArray[np.uint8], points: NDArray[np.int64], colour: Colour, line: int
) -> None:
    """Draw a line of pixels [N, 2] with white gaps, which show on a whole line of its colour."""
    long = _DASH * line
    pieces = [points[at : at + long].astype(np.int32) for at in range(0, len(points), long)]
    cv2.polylines(picture, pieces[1::2], False, _WHITE, line)
    cv2.polylines(picture, pieces[::2], False, colour, line)
