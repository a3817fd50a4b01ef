"""Detections on the canvas, back in the pixels of the original image."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from autotimm import masks
from autotimm.models.mask_head import paste_masks
from autotimm.structures import RLE, Detections


def restore(
    detections: Detections, scale: Tensor, offset: Tensor, height: int, width: int
) -> Detections:
    """Undo ``canvas = original * scale + offset`` and draw the masks at the original size.

    Args:
        detections: with ``masks`` [N, S, S] of probabilities inside the boxes, or without masks.
        scale, offset: [2], of x and of y.
        height, width: of the original image.

    Returns:
        Boxes clipped to the image; ``rles`` instead of ``masks``. Dense masks exist for one chunk
        at a time. A box of which nothing lies inside the image is left out.
    """
    boxes = (detections["boxes"] - offset.repeat(2)) / scale.repeat(2)
    restored, inside = clip(detections, boxes, height, width)
    if "masks" in detections:
        # Masks belong to the unclipped boxes: clipping would squeeze them.
        restored["rles"] = encode(detections["masks"][inside], boxes[inside], height, width)
    return restored


def clip(
    detections: Detections, boxes: Tensor, height: int, width: int
) -> tuple[Detections, Tensor]:
    """``detections`` at ``boxes`` [N, 4] cut to the image, without masks, less those of which
    nothing is left; and [N] bool, which ones are."""
    clipped = clip_boxes_to_image(boxes, (height, width))
    inside = ((clipped[:, 2:] - clipped[:, :2]) > 0).all(-1)
    kept = Detections(
        boxes=clipped[inside],
        labels=detections["labels"][inside],
        scores=detections["scores"][inside],
    )
    return kept, inside


def encode(probabilities: Tensor, boxes: Tensor, height: int, width: int) -> list[RLE]:
    """Masks [N, S, S] of probabilities in boxes [N, 4], pasted at 0.5 and run-length encoded."""
    return [
        masks.encode(mask)
        for chunk in paste_masks(probabilities, boxes, height, width)
        for mask in chunk.cpu().numpy()
    ]


def dense(probabilities: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """As :func:`encode`, but as one tensor [N, height, width] uint8 of 0 and 1."""
    chunks = list(paste_masks(probabilities, boxes, height, width))
    return (
        torch.cat(chunks)
        if chunks
        else probabilities.new_zeros((0, height, width), dtype=torch.uint8)
    )
