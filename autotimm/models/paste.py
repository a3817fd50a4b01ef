"""Masks inside boxes -> masks of the image, whatever its size, a window at a time.

Invariants: a pixel is inside where its centre looks up 0.5 or more (detectron2's
``_do_paste_mask``; torchvision rounds boxes to whole pixels first); only the part of the image that
boxes cover is ever made in floats, and of that about 128 MiB at once, or one mask if that is more.
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
    """Part of the masks of an image; they are zero around it."""

    start: int  # the first mask
    top: int
    left: int
    pixels: Tensor  # [n, h, w] uint8 of 0 and 1


def encode(probabilities: Tensor, boxes: Tensor, height: int, width: int) -> list[RLE]:
    """Masks [N, S, S] of probabilities in boxes [N, 4], run-length encoded at the image's size.

    One at a time on the CPU, where RLEs are made: what it takes goes with the boxes' area, not with
    the image's.
    """
    # The rest of the models run where hotcoco is missing.
    from autotimm.coco import masks as coded

    found = windows(probabilities.cpu(), boxes.cpu(), height, width, at_once=1)
    return [
        coded.encode_window(window.pixels[0].numpy(), window.top, window.left, height, width)
        for window in found
    ]


def dense(probabilities: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """As :func:`encode`, but as one tensor [N, height, width] uint8 of 0 and 1, on the device.

    The result alone takes N * height * width bytes: 3 GiB for 100 masks of 8000 x 4000 pixels.
    """
    shape = (len(boxes), height, width)
    if boxes.device.type == "cpu":
        # Of NumPy's zeros the system hands out a page when it is written to: what no box covers
        # takes no memory.
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
    """The part of the image that the boxes of ``at_once`` masks cover, for all of them in turn."""
    low = (boxes[:, :2] - 1).floor()  # a pixel more than can be inside, for the sake of rounding
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
    """[n, h, w] uint8: the pixels of these rows and columns, each (first, last + 1)."""
    size = probabilities.shape[-1]
    x1, y1, x2, y2 = boxes.float().unbind(-1)
    with torch.autocast(boxes.device.type, enabled=False):
        down = bilinear.weights(_places(rows, y1, y2, size), size)  # [n, h, S]
        across = bilinear.weights(_places(columns, x1, x2, size), size)  # [n, w, S]
        inside = down @ probabilities.float() @ across.transpose(1, 2) >= THRESHOLD
    return inside.to(torch.uint8)


def _places(pixels: tuple[int, int], low: Tensor, high: Tensor, size: int) -> Tensor:
    """Where between the samples of a mask from ``low`` to ``high`` [n] each pixel's centre lies,
    [n, pixels]."""
    centre = torch.arange(*pixels, device=low.device) + 0.5
    extent = (high - low).clamp(min=1e-3)
    return (centre - low[:, None]) / extent[:, None] * size - 0.5
