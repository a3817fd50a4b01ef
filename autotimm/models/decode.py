"""From head outputs to detections: threshold, top candidates, class-wise NMS."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from autotimm.models.class_nms import class_nms
from autotimm.models.fcos import HeadOutputs, Locations, decode_boxes
from autotimm.structures import Detections

CANDIDATES_PER_LEVEL = 1000


@torch.no_grad()
def decode(
    outputs: HeadOutputs,
    where: Locations,
    cells: Sequence[int],
    size: tuple[int, int],
    score_thresh: float = 0.05,
    nms_thresh: float = 0.5,
    max_detections: int = 100,
) -> list[Detections]:
    """Detections of each image, best first, in canvas pixels, boxes clipped to the canvas.

    The score is sqrt(class * centerness). As in AdelaiDet, the threshold applies to the class
    probability, before centerness lowers it; torchvision applies it to the product. For any
    outputs, boxes are finite and inside the canvas, and scores are in [0, 1].

    Args:
        outputs: of the whole batch.
        where: the locations of the outputs.
        cells: the number of locations per level, finest first; their sum is L.
        size: height and width of the canvas.
        score_thresh: the minimum class probability.
        nms_thresh: NMS removes the worse of two boxes of a class whose IoU is higher.
        max_detections: the maximum number per image.
    """
    # In float32 and in place, because [B, L, K] is the largest tensor here.
    scores = outputs.classes.float().sigmoid()
    rejected = ~(scores > score_thresh)
    scores.mul_(outputs.centerness.float().sigmoid()[..., None]).sqrt_().masked_fill_(rejected, -1)
    # NaN scores must not displace candidates.
    scores.nan_to_num_(nan=-1.0)
    boxes = clip_boxes_to_image(decode_boxes(outputs.distances, where), size)
    score, label, box = _candidates(scores, boxes, cells)
    valid = (score >= 0) & ((box[..., 2:] - box[..., :2]) > 0).all(-1)
    detections = []
    for i, kept in enumerate(valid):
        place = kept.nonzero()[:, 0]  # the host waits for the device here and in the NMS
        own, labels, best = box[i, place], label[i, place], score[i, place]
        keep = class_nms(own, best, labels, nms_thresh)[:max_detections]
        detections.append(Detections(boxes=own[keep], labels=labels[keep], scores=best[keep]))
    return detections


def _candidates(
    scores: Tensor, boxes: Tensor, cells: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The best candidates of each level, for all images at once.

    Args:
        scores: [B, L, K].
        boxes: [B, L, 4].
        cells: as in :func:`decode`.

    Returns:
        Scores [B, N], labels [B, N] and boxes [B, N, 4].
    """
    num_classes = scores.shape[2]
    best, index, start = [], [], 0
    for count in cells:
        level = scores[:, start : start + count].flatten(1)
        value, place = level.topk(min(CANDIDATES_PER_LEVEL, level.shape[1]))
        best.append(value)
        index.append(place + start * num_classes)
        start += count
    flat = torch.cat(index, 1)
    where = (flat // num_classes)[..., None].expand(-1, -1, 4)
    return torch.cat(best, 1), flat % num_classes, boxes.gather(1, where)
