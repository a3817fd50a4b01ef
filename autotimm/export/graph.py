"""All of inference as one graph of fixed outputs: pixels in; boxes, labels, scores, masks out.

What :func:`autotimm.models.decode.decode` does with a length of its own an image is done here in
tensors of one shape, without a loop over images and without a library's NMS, so that any runtime
can have it, with any batch.
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
"""Best ones of an image that suppress each other."""
ROUNDS = 48
"""How long a chain of boxes, each of which would suppress the next, is followed."""


class Graph(nn.Module):
    """A network with what comes before and behind it.

    Args:
        network: in evaluation mode.
        preprocessing: of its images.
        score_thresh, nms_thresh: as of the model.
        max_detections: N.
        min_score: what is found with less is left out.
    """

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
        score_thresh: float,
        nms_thresh: float,
        max_detections: int,
        min_score: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.score_thresh, self.nms_thresh = score_thresh, nms_thresh
        self.max_detections, self.min_score = max_detections, min_score
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
            of 0 and 1. What is beyond the last detection has label -1, score 0 and no pixels.
        """
        normal = (image - self.mean) / self.std
        outputs = self.network(normal)
        shapes = [level.shape[-2:] for level in outputs.levels[3 - self.network.finest :]]
        where = locations(shapes, image.device)
        height, width = image.shape[-2:]
        boxes = decode_boxes(outputs.head.distances, where)
        boxes = clip_boxes_to_image(boxes, (height, width))
        scores = outputs.head.classes.float().sigmoid()
        hopeless = ~(scores > self.score_thresh)
        scores = (scores * outputs.head.centerness.float().sigmoid()[..., None]).sqrt()
        hopeless = hopeless | ~(scores >= self.min_score)  # also what is no number
        scores = scores.masked_fill(hopeless, -1.0)
        score, label, box = _candidates(scores, boxes, [h * w for h, w in shapes])
        solid = ((box[..., 2:] - box[..., :2]) > 0).all(-1)
        score = torch.where(solid, score, -1.0)
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
        features = pool(outputs.levels, flat, of_image, head.size // 2, finest)
        inside = head(features, of_class).float().sigmoid()
        masks = paste(inside, flat, height, width) & real.flatten()[:, None, None]
        return box, label, score, masks.to(torch.uint8).unflatten(0, (-1, self.max_detections))


def _candidates(scores: Tensor, boxes: Tensor, cells: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """As of ``decode``, the best 1,000 of each level, and of these the best ``CANDIDATES``."""
    classes = scores.shape[2]
    best, index, start = [], [], 0
    for count in cells:
        # Padded, so that there are 1,000 on levels of any size.
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
    """What greedy NMS keeps, class by class, as a fixed point: a box stays unless one that stays,
    of its class and before it, overlaps it by more than ``threshold``.

    Each round makes one more link of every chain right, so that after ``ROUNDS`` only what hangs
    behind longer ones could differ (Zheng et al. 2020, Cluster-NMS).

    Args:
        boxes: [B, N, 4], best first.
        labels: [B, N].
        scores: [B, N]; what is below 0 neither stays nor suppresses.

    Returns:
        [B, N] bool.
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
    # [B, i, j]: i would suppress j. As numbers, for a product is what runtimes are good at.
    beats = (overlap & better & (labels[:, :, None] == labels[:, None])).float()
    there = (scores >= 0).float()
    kept = there
    for _ in range(ROUNDS):
        beaten = (kept[:, None] @ beats)[:, 0]
        kept = torch.where(beaten > 0, 0.0, there)
    return kept > 0


def paste(inside: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """As of ``models.paste``: masks [N, S, S] in boxes [N, 4] as [N, height, width] bool."""
    size = inside.shape[-1]

    def places(length: int, low: Tensor, high: Tensor) -> Tensor:
        centre = torch.arange(length, device=low.device) + 0.5
        return (centre - low[:, None]) / (high - low).clamp(min=1e-3)[:, None] * size - 0.5

    down = weights(places(height, boxes[:, 1], boxes[:, 3]), size)
    across = weights(places(width, boxes[:, 0], boxes[:, 2]), size)
    return down @ inside @ across.transpose(1, 2) >= THRESHOLD
