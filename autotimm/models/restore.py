"""Convert detections from canvas pixels to pixels of the original image."""

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
        detections: in canvas pixels, with or without ``masks`` [N, S, S] of probabilities.
        scale, offset: [2], of x and y.
        height, width: of the original image.
        dense: whether to return masks [N, height, width] uint8 of 0 and 1 instead of RLEs.

    Returns:
        Boxes clipped to the image, and ``rles``, or ``masks`` if ``dense``. Boxes entirely outside
        of the image are removed.
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
    """Clip ``boxes`` [N, 4] to the image, and remove detections entirely outside of it.

    Returns:
        The remaining detections, without masks, and [N] bool, which ones remain.
    """
    clipped = clip_boxes_to_image(boxes, (height, width))
    inside = ((clipped[:, 2:] - clipped[:, :2]) > 0).all(-1)
    kept = Detections(
        boxes=clipped[inside],
        labels=detections["labels"][inside],
        scores=detections["scores"][inside],
    )
    return kept, inside
