"""FCOS's assignment of instances to locations, padded and vectorised on the device.

Everything has a fixed shape, so the compiled step neither waits for the host nor recompiles. There
are B * L * M pairs of a location and an instance slot: 110 million for 16 images of 800 pixels with
512 slots. A compiled step never stores them, and an uncompiled one computes them for a few slots at
a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from autotimm.models.fcos import Locations

CENTER_RADIUS = 1.5
PAIRS_AT_ONCE = 2**22  # some ten tensors of 16 MiB


class Targets(NamedTuple):
    """What the head should predict at each location."""

    matched: Tensor  # [B, L] the instance slot, -1 for background
    labels: Tensor  # [B, L] class, -1 for background
    distances: Tensor  # [B, L, 4] left, top, right, bottom in strides; ones at background
    centerness: Tensor  # [B, L] in [0, 1]; 0 at background


def match(where: Locations, boxes: Tensor, labels: Tensor) -> Tensor:
    """Slot of the instance that each location regresses, or -1 (Tian et al. 2019, section 3).

    A location matches an instance if it lies inside the instance's box and within 1.5 strides of
    the box's centre, and if its largest distance to a side of the box is in its level's range
    (low, high]. If a location matches several instances, it regresses the smallest by area, and the
    first of equally small ones. torchvision excludes the upper end of a range, so a distance of
    exactly 64 has no level there, and it treats areas as equal if they differ by less than 8 square
    pixels.

    An instance that is too small to contain a location gets none. The mask head still trains on it.

    Args:
        boxes: [B, M, 4] canvas pixels.
        labels: [B, M], -1 in an empty slot.

    Returns:
        [B, L] int64.
    """
    if torch.compiler.is_compiling():
        # All slots at once: a loop over them would need one graph for each number of slots.
        smallest, matched = _smallest(where, boxes, labels)
        return torch.where(torch.isfinite(smallest), matched, -1)
    images, slots = labels.shape
    step = max(PAIRS_AT_ONCE // (images * len(where.points)), 1)
    smallest, matched = _smallest(where, boxes[:, :step], labels[:, :step])
    for start in range(step, slots, step):
        part = slice(start, start + step)
        area, slot = _smallest(where, boxes[:, part], labels[:, part])
        matched = torch.where(area < smallest, slot + start, matched)
        smallest = torch.minimum(area, smallest)
    return torch.where(torch.isfinite(smallest), matched, -1)


def _smallest(where: Locations, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Area and slot of the smallest instance that each location matches, both [B, L].

    The area is infinite where a location matches none.
    """
    x, y = where.points[:, 0, None], where.points[:, 1, None]  # [L, 1]
    x1, y1, x2, y2 = boxes[:, None].unbind(-1)  # each [B, 1, M]
    left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y  # each [B, L, M]
    inside = torch.minimum(torch.minimum(left, top), torch.minimum(right, bottom)) > 0
    # For a location inside the box, this equals AdelaiDet's test whether it is inside the centre
    # box, clipped to the ground truth.
    radius = CENTER_RADIUS * where.strides[:, None]
    central = torch.maximum((x - (x1 + x2) / 2).abs(), (y - (y1 + y2) / 2).abs()) < radius
    reach = torch.maximum(torch.maximum(left, top), torch.maximum(right, bottom))
    in_range = (reach > where.ranges[:, :1]) & (reach <= where.ranges[:, 1:])
    candidate = inside & central & in_range & (labels >= 0)[:, None]
    area = ((x2 - x1) * (y2 - y1)).expand_as(reach)
    smallest, slot = torch.where(candidate, area, torch.inf).min(-1)
    return smallest, slot


def targets(where: Locations, boxes: Tensor, labels: Tensor) -> Targets:
    """Labels, distances and centerness of every location; shapes as in :func:`match`."""
    matched = match(where, boxes, labels)
    foreground = matched >= 0
    slot = matched.clamp(min=0)
    box = boxes.gather(1, slot[..., None].expand(-1, -1, 4))
    x, y = where.points.unbind(-1)
    x1, y1, x2, y2 = box.unbind(-1)
    distances = torch.stack([x - x1, y - y1, x2 - x, y2 - y], -1) / where.strides[:, None]
    distances = torch.where(foreground[..., None], distances, 1.0)
    return Targets(
        matched=matched,
        labels=torch.where(foreground, labels.gather(1, slot), -1),
        distances=distances,
        centerness=torch.where(foreground, centerness(distances), 0.0),
    )


def centerness(distances: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)): FCOS's equation 3. [..., 4] to [...]."""
    # Slices, because lists of indices would be copied to the device at every step.
    horizontal, vertical = distances[..., 0::2], distances[..., 1::2]
    ratio = (horizontal.amin(-1) * vertical.amin(-1)) / (horizontal.amax(-1) * vertical.amax(-1))
    return ratio.sqrt()
