"""Bilinear sampling of boxes as two matrix products, one over rows and one over columns.

The bilinear weights of a grid of points are the outer product of the weights of its rows and of its
columns. So no [N, H, W, 2] grid is needed, and the sums are the same in every run.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weights(place: Tensor, size: int) -> Tensor:
    """Bilinear weight of each of ``size`` samples, which lie at 0, 1, 2, ..., at each place.

    [..., n] to [..., n, size]; all zeros for a place that is one sample or more outside.
    """
    samples = torch.arange(size, device=place.device, dtype=place.dtype)
    return (1 - (place[..., None] - samples).abs()).clamp(min=0)


def cell_weights(
    low: Tensor, high: Tensor, cells: int, points: int, size: int, edge: bool
) -> Tensor:
    """Mean weight of each sample over the points inside each cell of the spans low to high.

    Args:
        low, high: [N], the ends of the spans; sample i covers i to i + 1, and its centre is at
            i + 0.5.
        cells: the number of cells that a span is divided into.
        points: the number of points per cell, evenly spaced.
        size: the number of samples.
        edge: whether places up to half a sample outside take the value at the edge, as in RoIAlign;
            otherwise the weights fall to zero over one sample.

    Returns:
        [N, cells, size].
    """
    grid = (torch.arange(cells * points, device=low.device, dtype=low.dtype) + 0.5) / (
        cells * points
    )
    place = low[:, None] + (high - low)[:, None] * grid - 0.5
    if edge:
        inside = (place >= -1) & (place <= size)
        per_point = weights(place.clamp(0, size - 1), size) * inside[..., None]
    else:
        per_point = weights(place, size)
    return per_point.unflatten(1, (cells, points)).mean(2)


def roi_align(level: Tensor, boxes: Tensor, image: Tensor, size: int, points: int = 2) -> Tensor:
    """Deterministic RoIAlign: torchvision's with ``aligned=True`` and ``sampling_ratio=points``.

    It is slower than torchvision's, which adds up gradients on a GPU in a random order. If
    deterministic algorithms are switched on, torchvision stores every sample of every channel
    instead and runs out of memory (pytorch/vision#8168).

    Args:
        level: [B, C, h, w].
        boxes: [N, 4] in cells of the map.
        image: [N] int64, the index in the batch of each box's image.

    Returns:
        [N, C, size, size].
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    rows = cell_weights(y1, y2, size, points, level.shape[2], edge=True)
    columns = cell_weights(x1, x2, size, points, level.shape[3], edge=True)
    # Treat the images as one tall map in which the rows of other images have weight zero.
    own = image[:, None] == torch.arange(len(level), device=image.device)  # [N, B]
    tall = rows[:, :, None] * own[:, None, :, None]  # [N, size, B, h]
    mixed = torch.einsum("npbh,bchw->ncpw", tall, level)
    return mixed @ columns.transpose(1, 2)[:, None]
