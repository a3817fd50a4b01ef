"""All of inference as one graph with outputs of fixed size: pixels to boxes, labels, scores, masks.

:func:`autotimm.models.decode.decode` returns as many detections as it finds in each image. This
graph does the same in tensors of one shape, without a loop over images and without a library's NMS,
so that any runtime can run it with any batch size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from autotimm.models.bilinear import weights
from autotimm.models.decode import CANDIDATES_PER_LEVEL
from autotimm.models.fcos import decode_boxes, locations
from autotimm.models.mask_head import pool
from autotimm.models.network import Network
from autotimm.models.paste import THRESHOLD
from autotimm.structures import Preprocessing

CANDIDATES = 2000
"""Number of an image's best boxes that take part in NMS."""
ROUNDS = 48
"""Rounds of NMS, which are exact for chains of so many boxes that each suppress the next."""


class Graph(nn.Module):
    """A network with the preprocessing before it and the decoding after it.

    Args:
        network: in evaluation mode.
        preprocessing: of the images in training.
        score_thresh: least class probability, as in the model.
        nms_thresh: IoU above which a box suppresses a worse one of its class, as in the model.
        max_detections: N, the number of detections in the output of each image.
        min_score: least score of a detection.
        half_stride: that of the network.
        aligned: that of the network.
    """

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
        score_thresh: float,
        nms_thresh: float,
        max_detections: int,
        min_score: float = 0.0,
        half_stride: bool = True,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.network = network
        self.score_thresh, self.nms_thresh = score_thresh, nms_thresh
        self.max_detections, self.min_score = max_detections, min_score
        self.half_stride, self.aligned = half_stride, aligned
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(preprocessing.mean).view(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(preprocessing.std).view(3, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Finds objects.

        Args:
            image: [B, 3, H, W] float32, RGB from 0 to 255; H and W multiples of 32.

        Returns:
            Best first, in pixels of ``image``: ``boxes`` [B, N, 4] float32, ``labels`` [B, N]
            int64, ``scores`` [B, N] float32 and, with a mask branch, ``masks`` [B, N, H, W] uint8
            of 0 and 1. Slots after the last detection have label -1, score 0 and an empty mask.
        """
        normal = (image - self.mean) / self.std
        outputs = self.network(normal)
        shapes = [level.shape[-2:] for level in outputs.levels[3 - self.network.finest :]]
        points = locations(shapes, image.device, self.half_stride)
        height, width = image.shape[-2:]
        boxes = decode_boxes(outputs.head.distances, points)
        boxes = clip_boxes_to_image(boxes, (height, width))
        scores = outputs.head.classes.float().sigmoid()
        rejected = ~(scores > self.score_thresh)
        scores = (scores * outputs.head.centerness.float().sigmoid()[..., None]).sqrt()
        rejected = rejected | ~(scores >= self.min_score)  # also NaN
        scores = scores.masked_fill(rejected, -1.0)
        score, label, box = _candidates(scores, boxes, [h * w for h, w in shapes])
        has_area = ((box[..., 2:] - box[..., :2]) > 0).all(-1)
        score = torch.where(has_area, score, -1.0)
        kept = survivors(box, label, score, self.nms_thresh)
        score, place = torch.where(kept, score, -1.0).topk(self.max_detections)
        real = score >= 0
        label = torch.where(real, label.gather(1, place), -1)
        box = torch.where(real[..., None], box.gather(1, place[..., None].expand(-1, -1, 4)), 0.0)
        score = score.clamp(min=0)
        head = self.network.mask_head
        if head is None:
            return box, label, score
        flat, of_class = box.flatten(0, 1), label.flatten().clamp(min=0)
        count = torch.arange(box.shape[0], device=box.device)
        of_image = count[:, None].expand(-1, self.max_detections).flatten()
        finest = self.network.finest
        features = pool(outputs.levels, flat, of_image, head.size // 2, finest, self.aligned)
        inside = head(features, of_class).float().sigmoid()
        masks = paste(inside, flat, height, width) & real.flatten()[:, None, None]
        return box, label, score, masks.to(torch.uint8).unflatten(0, (-1, self.max_detections))


def _candidates(scores: Tensor, boxes: Tensor, cells: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The best 1,000 of each level, as in ``decode``, and of these the best ``CANDIDATES``.

    Args:
        scores: [B, L, K]; -1 for rejected ones.
        boxes: [B, L, 4].
        cells: locations of each level, L in sum.

    Returns:
        Scores [B, N], labels [B, N] and boxes [B, N, 4] of N = ``CANDIDATES``, best first.
    """
    classes = scores.shape[2]
    best, index, start = [], [], 0
    for count in cells:
        # Padded, so that even the smallest level has 1,000.
        level = F.pad(
            scores[:, start : start + count].flatten(1), (0, CANDIDATES_PER_LEVEL), value=-1.0
        )
        value, place = level.topk(CANDIDATES_PER_LEVEL)
        best.append(value)
        index.append(torch.where(value < 0, 0, place + start * classes))
        start = start + count
    score, order = torch.cat(best, 1).topk(CANDIDATES)
    flat = torch.cat(index, 1).gather(1, order)
    where = (flat // classes)[..., None].expand(-1, -1, 4)
    return score, flat % classes, boxes.gather(1, where)


def survivors(boxes: Tensor, labels: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Greedy NMS within each class, computed as a fixed point (Zheng et al. 2020, Cluster-NMS).

    A box survives unless a better one of its class survives and overlaps it by more than
    ``threshold``. Each round settles one more box of every chain of boxes that suppress the next,
    so the result can differ from greedy NMS only beyond the ``ROUNDS``-th box of a chain.

    Args:
        boxes: [B, N, 4], best first.
        labels: [B, N].
        scores: [B, N]; a box with a score below 0 neither survives nor suppresses.
        threshold: IoU.

    Returns:
        [B, N] bool, whether a box survives.
    """
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    sides = (high - low).clamp(min=0)
    both = sides[..., 0] * sides[..., 1]
    extent = boxes[..., 2:] - boxes[..., :2]
    area = extent[..., 0] * extent[..., 1]
    overlap = both > threshold * (area[:, :, None] + area[:, None] - both)
    rank = torch.arange(boxes.shape[1], device=boxes.device)
    better = rank[:, None] < rank[None]
    # [B, i, j]: i would suppress j. As float32, because runtimes are fast at matrix products.
    beats = (overlap & better & (labels[:, :, None] == labels[:, None])).float()
    valid = (scores >= 0).float()
    kept = valid
    for _ in range(ROUNDS):
        beaten = (kept[:, None] @ beats)[:, 0]
        kept = torch.where(beaten > 0, 0.0, valid)
    return kept > 0


def paste(inside: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks [N, S, S] pasted into boxes [N, 4], as [N, height, width] bool; as ``models.paste``."""
    size = inside.shape[-1]

    def places(length: int, low: Tensor, high: Tensor) -> Tensor:
        centre = torch.arange(length, device=low.device) + 0.5
        return (centre - low[:, None]) / (high - low).clamp(min=1e-3)[:, None] * size - 0.5

    down = weights(places(height, boxes[:, 1], boxes[:, 3]), size)
    across = weights(places(width, boxes[:, 0], boxes[:, 2]), size)
    return down @ inside @ across.transpose(1, 2) >= THRESHOLD
