"""Bilinear sampling of boxes as products of thin matrices: one mixes rows, one mixes columns.

Bilinear weights of a grid of points are the outer product of those of its rows and of its columns.
So no [N, H, W, 2] grid is ever made, and no step of it adds up in an order left to chance.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weights(place: Tensor, size: int) -> Tensor:
    """Weight of each of ``size`` samples, which lie at 0, 1, 2, ..., at each place.

    [..., n] to [..., n, size]; zeros where a place is a whole sample or more outside.
    """
    samples = torch.arange(size, device=place.device, dtype=place.dtype)
    return (1 - (place[..., None] - samples).abs()).clamp(min=0)


def cell_weights(
    low: Tensor, high: Tensor, cells: int, points: int, size: int, edge: bool
) -> Tensor:
    """Mean weight of each sample over the points of each cell between two places.

    Args:
        low, high: [N], where sample i covers i to i + 1, its centre at i + 0.5.
        cells: that the span is divided into.
        points: evenly spread inside each cell.
        size: number of samples.
        edge: what lies up to half a sample outside is what lies on the edge, as RoIAlign has it;
            otherwise what lies outside fades to zero over one sample.

    Returns:
        [N, cells, size].
    """
    grid = (torch.arange(cells * points, device=low.device, dtype=low.dtype) + 0.5) / (
        cells * points
    )
    place = low[:, None] + (high - low)[:, None] * grid - 0.5
    if edge:
        inside = (place >= -1) & (place <= size)
        found = weights(place.clamp(0, size - 1), size) * inside[..., None]
    else:
        found = weights(place, size)
    return found.unflatten(1, (cells, points)).mean(2)


def roi_align(level: Tensor, boxes: Tensor, image: Tensor, size: int, points: int = 2) -> Tensor:
    """RoIAlign, aligned, as torchvision's with ``sampling_ratio=points``.

    Slower than torchvision's, but the same each time: that one adds gradients up on a GPU in an
    order left to chance, and where deterministic algorithms are asked for it makes a tensor of
    every sample of every channel, which takes more memory than there is (pytorch/vision#8168).

    Args:
        level: [B, C, h, w].
        boxes: [N, 4] in cells of the map.
        image: [N] int64, whose each is in the batch.

    Returns:
        [N, C, size, size].
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    rows = cell_weights(y1, y2, size, points, level.shape[2], edge=True)
    columns = cell_weights(x1, x2, size, points, level.shape[3], edge=True)
    # The images as one tall map: rows of other images weigh nothing.
    own = image[:, None] == torch.arange(len(level), device=image.device)  # [N, B]
    tall = rows[:, :, None] * own[:, None, :, None]  # [N, size, B, h]
    mixed = torch.einsum("npbh,bchw->ncpw", tall, level)
    return mixed @ columns.transpose(1, 2)[:, None]
