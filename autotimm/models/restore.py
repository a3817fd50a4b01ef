"""Detections on the canvas, back in the pixels of the original image."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from autotimm.models import paste
from autotimm.structures import Detections


def restore(
    detections: Detections,
    scale: Tensor,
    offset: Tensor,
    height: int,
    width: int,
    *,
    dense: bool = False,
) -> Detections:
    """Undo ``canvas = original * scale + offset`` and draw the masks at the original size.

    Args:
        detections: with ``masks`` [N, S, S] of probabilities inside the boxes, or without masks.
        scale, offset: [2], of x and of y.
        height, width: of the original image.
        dense: give masks [N, height, width] uint8 of 0 and 1 rather than RLEs.

    Returns:
        Boxes clipped to the image; ``rles``, or ``masks`` if ``dense``. A box of which nothing lies
        inside the image is left out.
    """
    boxes = (detections["boxes"] - offset.repeat(2)) / scale.repeat(2)
    restored, inside = _clip(detections, boxes, height, width)
    if "masks" in detections:
        # Masks belong to the unclipped boxes: clipping would squeeze them.
        parts = detections["masks"][inside], boxes[inside], height, width
        if dense:
            restored["masks"] = paste.dense(*parts)
        else:
            restored["rles"] = paste.encode(*parts)
    return restored


def _clip(
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
