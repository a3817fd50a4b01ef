"""Random ground truth and small models for tests of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from autotimm import InstanceSegmentor
from autotimm.structures import MASK_CROP


def small(cls: type = InstanceSegmentor, **options: Any) -> Any:
    """A model with the same few random weights every time, uncompiled, that finds something."""
    torch.manual_seed(0)
    settings = {
        "backbone": "resnet10t",
        "num_classes": 3,
        "pretrained": False,
        "fpn_channels": 32,
        "head_convs": 1,
        "compile_model": False,
        "score_thresh": 0.0,
    }
    return cls(**{**settings, **options})


def random_boxes(
    count: int, height: int, width: int, generator: torch.Generator, smallest: float = 4.0
) -> Tensor:
    """[count, 4] boxes inside the canvas, their sizes spread evenly over the octaves."""
    limits = torch.tensor([width, height]) / smallest
    sides = smallest * limits ** torch.rand(count, 2, generator=generator)
    low = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - sides)
    return torch.cat([low, low + sides], -1)


def random_batch(
    counts: list[int],
    height: int = 128,
    width: int = 160,
    num_classes: int = 3,
    slots: int = 8,
    seed: int = 0,
) -> dict[str, Tensor]:
    """An image for each of ``counts``, with that many instances; discs as masks."""
    g = torch.Generator().manual_seed(seed)
    images = len(counts)
    boxes = torch.zeros(images, slots, 4)
    labels = torch.full((images, slots), -1)
    masks = torch.zeros(images, slots, MASK_CROP, MASK_CROP, dtype=torch.uint8)
    axis = (torch.arange(MASK_CROP) + 0.5) / MASK_CROP - 0.5
    disc = (axis[:, None] ** 2 + axis[None, :] ** 2 <= 0.25).to(torch.uint8)
    for i, count in enumerate(counts):
        boxes[i, :count] = random_boxes(count, height, width, g, smallest=8.0)
        labels[i, :count] = torch.randint(0, num_classes, (count,), generator=g)
        masks[i, :count] = disc
    image = torch.randn(images, 3, height, width, generator=g)
    return {"image": image, "boxes": boxes, "labels": labels, "masks": masks}


def polygon_of_a_star(cx: float, cy: float, radius: float) -> list[float]:
    """Ten corners, as COCO's x1, y1, x2, y2, ..."""
    angle = np.arange(10) * np.pi / 5
    r = np.where(np.arange(10) % 2, 0.45, 1.0) * radius
    return np.stack([cx + r * np.cos(angle), cy + r * np.sin(angle)], -1).flatten().tolist()
