"""Non-maximum suppression within each class, exact for any number of classes and size of image."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms


def class_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes that no better box of their class suppresses, best first.

    torchvision moves the boxes of each class apart by ``label * (largest coordinate + 1)``. In
    float32 that rounds away the boxes themselves where many classes meet large images: the 1,203
    classes of LVIS on a canvas of 4,000 pixels leave steps of half a pixel. float64 holds both,
    and numbering the classes that are present keeps the products small.

    Args:
        boxes: [N, 4], x1 y1 x2 y2.
        scores: [N].
        labels: [N], whole numbers.
        threshold: a box goes if its IoU with a better one of its class is higher.

    Returns:
        [M] of int64.
    """
    # Apple's GPUs have no float64.
    exact = torch.float32 if boxes.device.type == "mps" else torch.float64
    present = labels.unique(return_inverse=True)[1]
    return batched_nms(boxes.to(exact), scores.to(exact), present, threshold)
