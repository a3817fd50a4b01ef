"""Paste masks of boxes into an image of any size, one window at a time.

Invariants: a pixel belongs to a mask if the probability at its centre, interpolated bilinearly, is
0.5 or more, as in detectron2's ``_do_paste_mask`` (torchvision rounds boxes to whole pixels first).
Floats exist only for the part of the image that boxes cover, at most about 128 MiB at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from autotimm.models import bilinear
from autotimm.structures import RLE

PASTE_BYTES = 128 * 2**20
THRESHOLD = 0.5


class Window(NamedTuple):
    """A part of the image with some of its masks, which are zero outside of it."""

    start: int  # index of the first mask
    top: int
    left: int
    pixels: Tensor  # [n, h, w] uint8 of 0 and 1


def encode(probabilities: Tensor, boxes: Tensor, height: int, width: int) -> list[RLE]:
    """Paste masks [N, S, S] of probabilities into their boxes [N, 4] and encode them as RLEs.

    It pastes one mask at a time on the CPU, where the RLEs are encoded. Time and memory depend on
    the area of the boxes rather than that of the image.
    """
    # Imported here, so that the models run without hotcoco.
    from autotimm.coco import masks as coded

    each = windows(probabilities.cpu(), boxes.cpu(), height, width, at_once=1)
    return [
        coded.encode_window(window.pixels[0].numpy(), window.top, window.left, height, width)
        for window in each
    ]


def dense(probabilities: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """As :func:`encode`, but as one tensor [N, height, width] uint8 of 0 and 1, on the device.

    The result alone takes N * height * width bytes: 3 GiB for 100 masks of 8000 x 4000 pixels.
    """
    shape = (len(boxes), height, width)
    if boxes.device.type == "cpu":
        # The system allocates a page of NumPy's zeros at the first write, so that the part of the
        # image outside of all boxes takes no memory.
        result = torch.from_numpy(np.zeros(shape, np.uint8))
    else:
        result = torch.zeros(shape, dtype=torch.uint8, device=boxes.device)
    at_once = max(PASTE_BYTES // (4 * height * width), 1)
    for start, top, left, pixels in windows(probabilities, boxes, height, width, at_once):
        count, h, w = pixels.shape
        result[start : start + count, top : top + h, left : left + w] = pixels
    return result


def windows(
    probabilities: Tensor, boxes: Tensor, height: int, width: int, at_once: int
) -> Iterator[Window]:
    """Yield the window that covers the boxes of the next ``at_once`` masks, until all are done."""
    low = (boxes[:, :2] - 1).floor()  # one pixel larger on each side, because of rounding
    high = (boxes[:, 2:] + 1).ceil()
    limit = boxes.new_tensor([width, height])
    for start in range(0, len(boxes), at_once):
        part = slice(start, start + at_once)
        left, top = low[part].amin(0).clamp(min=0).minimum(limit).int().tolist()
        right, bottom = high[part].amax(0).clamp(min=0).minimum(limit).int().tolist()
        pixels = _paste(probabilities[part], boxes[part], (top, bottom), (left, right))
        yield Window(start, top, left, pixels)


def _paste(
    probabilities: Tensor, boxes: Tensor, rows: tuple[int, int], columns: tuple[int, int]
) -> Tensor:
    """The masks [n, h, w] uint8 in these rows and columns, each given as (first, last + 1)."""
    size = probabilities.shape[-1]
    x1, y1, x2, y2 = boxes.float().unbind(-1)
    with torch.autocast(boxes.device.type, enabled=False):
        down = bilinear.weights(_places(rows, y1, y2, size), size)  # [n, h, S]
        across = bilinear.weights(_places(columns, x1, x2, size), size)  # [n, w, S]
        down, across = down @ probabilities.float(), across.transpose(1, 2)
        count, height, width = len(boxes), rows[1] - rows[0], columns[1] - columns[0]
        band = max(PASTE_BYTES // (4 * count * max(width, 1)), 1)
        if band >= height:
            return (down @ across >= THRESHOLD).to(torch.uint8)
        pixels = torch.empty((count, height, width), dtype=torch.uint8, device=boxes.device)
        for top in range(0, height, band):  # the floats of a large mask would take gigabytes
            part = slice(top, top + band)
            pixels[:, part] = down[:, part] @ across >= THRESHOLD
        return pixels


def _places(pixels: tuple[int, int], low: Tensor, high: Tensor, size: int) -> Tensor:
    """The position of each pixel's centre in samples of a mask that spans ``low`` to ``high``.

    Args:
        pixels: (first, last + 1).
        low, high: [n].
        size: S.

    Returns:
        [n, pixels].
    """
    centre = torch.arange(*pixels, device=low.device) + 0.5
    extent = (high - low).clamp(min=1e-3)
    return (centre - low[:, None]) / extent[:, None] * size - 0.5
