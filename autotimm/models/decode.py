"""From head outputs to detections: threshold, top candidates, class-wise NMS."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

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

    The score is sqrt(class * centerness). The threshold looks at the class probability alone,
    before centerness lowers it, as in AdelaiDet; torchvision applies it to the product. Whatever
    the outputs are, boxes are finite and inside the canvas, and scores in [0, 1].

    Args:
        outputs: of the whole batch.
        where: the locations that the outputs belong to.
        cells: locations a level, finest first; their sum is L.
        size: height and width to clip to.
        score_thresh: least class probability.
        nms_thresh: IoU above which the worse of two boxes of a class goes.
        max_detections: kept an image.
    """
    # In float32, and in place: [B, L, K] is the largest thing here, and a big canvas's is big.
    scores = outputs.classes.float().sigmoid()
    hopeless = ~(scores > score_thresh)
    scores.mul_(outputs.centerness.float().sigmoid()[..., None]).sqrt_().masked_fill_(hopeless, -1)
    # What is no number is no detection, and takes no candidate's place.
    scores.nan_to_num_(nan=-1.0)
    boxes = clip_boxes_to_image(decode_boxes(outputs.distances, where), size)
    starts = [sum(cells[:i]) for i in range(len(cells))]
    return [
        _decode_image(image_scores, image_boxes, starts, cells, nms_thresh, max_detections)
        for image_scores, image_boxes in zip(scores, boxes, strict=True)
    ]


def _decode_image(
    scores: Tensor,
    boxes: Tensor,
    starts: Sequence[int],
    cells: Sequence[int],
    nms_thresh: float,
    max_detections: int,
) -> Detections:
    """``scores`` [L, K], -1 below the threshold; ``boxes`` [L, 4]."""
    num_classes = scores.shape[1]
    best, index = [], []
    for start, count in zip(starts, cells, strict=True):
        level = scores[start : start + count].flatten()
        value, place = level.topk(min(CANDIDATES_PER_LEVEL, level.numel()))
        best.append(value)
        index.append(place + start * num_classes)
    score, flat = torch.cat(best), torch.cat(index)
    found = score >= 0
    score, flat = score[found], flat[found]
    box, label = boxes[flat // num_classes], flat % num_classes
    solid = ((box[:, 2:] - box[:, :2]) > 0).all(-1)
    box, label, score = box[solid], label[solid], score[solid]
    keep = batched_nms(box, score, label, nms_thresh)[:max_detections]
    return Detections(boxes=box[keep], labels=label[keep], scores=score[keep])
