"""Paste masks of boxes into an image of any size, one window at a time.

Invariants: a pixel belongs to a mask if the probability at its centre, interpolated bilinearly, is
0.5 or more, as in detectron2's ``_do_paste_mask`` (torchvision rounds boxes to whole pixels first).
Floats exist only for the part of the image that boxes cover, at most about 128 MiB at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from autotimm.coco import runs
from autotimm.models import bilinear
from autotimm.structures import RLE

PASTE_BYTES = 128 * 2**20
STRIP_PIXELS = 2**19
"""So many are pasted for RLEs at once: more need more memory, and fewer more calls."""
THRESHOLD = 0.5


class Window(NamedTuple):
    """A part of the image with some of its masks, which are zero outside of it."""

    start: int  # index of the first mask
    top: int
    left: int
    pixels: Tensor  # [n, h, w] uint8 of 0 and 1


def encode(probabilities: Tensor, boxes: Tensor, height: int, width: int) -> list[RLE]:
    """Paste masks [N, S, S] of probabilities into their boxes [N, 4] and encode them as RLEs.

    It works on the CPU, where the RLEs are encoded. Time and memory depend on the area of the boxes
    rather than that of the image.
    """
    # Imported here, so that the models run without hotcoco.
    from autotimm.coco import masks as coded

    probabilities, boxes = probabilities.detach().cpu().float(), boxes.detach().cpu().float()
    with torch.autocast("cpu", enabled=False):
        found = [
            _edges(strips, probabilities, boxes, height, width)
            for strips in _strips(_bounds(boxes, height, width).tolist())
        ]
    edges = np.concatenate([np.zeros(0, np.int64), *found])
    return coded.from_edges(edges, len(boxes), height, width)


class Strip(NamedTuple):
    """Some columns of a mask, over all rows of its window."""

    mask: int
    top: int
    left: int
    height: int
    width: int


def _strips(bounds: Sequence[Sequence[int]]) -> Iterator[list[Strip]]:
    """The windows of all masks by lists, each of at most ``STRIP_PIXELS``; a large one in parts."""
    strips: list[Strip] = []
    pixels = 0
    for mask, (left, top, right, bottom) in enumerate(bounds):
        height = bottom - top
        if height <= 0:
            continue
        step = max(STRIP_PIXELS // height, 1)
        for start in range(left, right, step):
            strip = Strip(mask, top, start, height, min(step, right - start))
            if strips and pixels + strip.height * strip.width > STRIP_PIXELS:
                yield strips
                strips, pixels = [], 0
            strips.append(strip)
            pixels += strip.height * strip.width
    if strips:
        yield strips


def _edges(
    strips: Sequence[Strip], probabilities: Tensor, boxes: Tensor, height: int, width: int
) -> np.ndarray:
    """Pastes strips column by column, as RLEs run; returns what ``runs.edges`` finds in them."""
    windows = np.array(strips)
    mask, top, left, high, wide = torch.from_numpy(windows.T.copy())
    high = high + 2  # a row above and one below, in which there is nothing
    first, count = torch.cat([left, top - 1]), torch.cat([wide, high])
    ends = count.cumsum(0)
    side = torch.repeat_interleave(count)  # of each column, and then of each row
    place = torch.arange(len(side)) + (first - ends + count)[side]
    low, far = boxes[mask].view(-1, 2, 2).permute(1, 2, 0).flatten(1)[:, side]
    size = probabilities.shape[-1]
    weights = bilinear.weights(_places(place, low, far, size), size)
    rows = slice(len(strips), None)
    weights[torch.cat([(ends - count)[rows], ends[rows] - 1])] = 0
    sides, areas = count.tolist(), (high * wide).tolist()
    every, pixels = list(zip(sides, weights.split(sides), strict=True)), torch.empty(sum(areas))
    each = (probabilities[mask], every[: len(strips)], every[rows], pixels.split(areas))
    for part, (w, across), (h, down), out in zip(*each, strict=True):
        torch.mm(across, torch.mm(down, part).t(), out=out.view(w, h))
    return runs.edges(pixels.numpy() >= THRESHOLD, windows, height, width)


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
    boxes = boxes.float()
    bounds = _bounds(boxes, height, width)
    for start in range(0, len(boxes), at_once):
        part = slice(start, start + at_once)
        left, top = bounds[part, :2].amin(0).tolist()
        right, bottom = bounds[part, 2:].amax(0).tolist()
        pixels = _paste(probabilities[part], boxes[part], (top, bottom), (left, right))
        yield Window(start, top, left, pixels)


def _bounds(boxes: Tensor, height: int, width: int) -> Tensor:
    """The window of each box [n, 4] inside the image: first column and row, last ones + 1."""
    limit = boxes.new_tensor([width, height])
    low = (boxes[:, :2] - 1).floor()  # one pixel larger on each side, because of rounding
    high = (boxes[:, 2:] + 1).ceil()
    return torch.cat([low.clamp(min=0).minimum(limit), high.clamp(min=0).minimum(limit)], 1).long()


def _paste(
    probabilities: Tensor, boxes: Tensor, rows: tuple[int, int], columns: tuple[int, int]
) -> Tensor:
    """The masks [n, h, w] uint8 in these rows and columns, each given as (first, last + 1)."""
    size = probabilities.shape[-1]
    x1, y1, x2, y2 = boxes.float().unbind(-1)
    y, x = (torch.arange(*pixels, device=boxes.device) for pixels in (rows, columns))
    with torch.autocast(boxes.device.type, enabled=False):
        down = bilinear.weights(_places(y, y1[:, None], y2[:, None], size), size)  # [n, h, S]
        across = bilinear.weights(_places(x, x1[:, None], x2[:, None], size), size)  # [n, w, S]
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


def _places(pixels: Tensor, low: Tensor, high: Tensor, size: int) -> Tensor:
    """The position of each pixel's centre in samples of a mask of ``size`` that spans its box.

    Args:
        pixels: rows or columns of the image, int64.
        low, high: where the box begins and ends; they have ``pixels``' shape or spread to it.
        size: S.
    """
    extent = (high - low).clamp(min=1e-3)
    return (pixels + 0.5 - low) / extent * size - 0.5
