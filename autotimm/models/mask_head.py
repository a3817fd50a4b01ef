"""The mask branch: the choice of RoIs to train on, their mask targets, and the head.

Invariants: a batch has a fixed number of RoIs for any number of instances; only foreground RoIs
have weight; a target is the part of the ground-truth mask inside the RoI. ``models/paste.py`` turns
the head's output into masks of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from autotimm.models import bilinear

COARSEST = 5  # RoIs are pooled from P5 and finer levels
MATCH_IOU = 0.5


class RoIs(NamedTuple):
    """The boxes that the mask head trains on, of all images of the batch."""

    boxes: Tensor  # [N, 4] canvas pixels
    image: Tensor  # [N] int64, index of the image in the batch
    slots: Tensor  # [N] int64, slot of the instance in its image
    valid: Tensor  # [N] bool; False is padding


@torch.no_grad()
def sample_rois(
    predicted: Tensor,
    matched: Tensor,
    boxes: Tensor,
    labels: Tensor,
    count: int,
    noise: Tensor | None = None,
) -> RoIs:
    """Sample RoIs from ground-truth boxes and predicted boxes with an IoU of 0.5 or more.

    The head needs both: predicted boxes are as imprecise at inference. The candidates are the
    ground-truth boxes and the predictions at positive locations whose IoU with the instance that
    the location is assigned to is 0.5 or more. An instance has about nine of those at most, so
    large instances do not crowd out small ones and no NMS is needed.

    Images take turns until N RoIs are chosen. An image with few candidates contributes all of them,
    and images with more take the remaining places, which would otherwise be padding.

    Args:
        predicted: [B, L, 4].
        matched: [B, L] instance slot of each location, -1 for background.
        boxes: [B, M, 4].
        labels: [B, M], -1 in an empty slot.
        count: N, the number of RoIs of the whole batch.
        noise: [B, M + L] in [0, 1); the candidates with the highest values are chosen. Random if
            None.
    """
    slots = torch.arange(boxes.shape[1], device=boxes.device).expand(boxes.shape[:2])
    all_slots = torch.cat([slots, matched.clamp(min=0)], 1)
    all_boxes = torch.cat([boxes, predicted], 1)
    truth = boxes.gather(1, all_slots[..., None].expand(-1, -1, 4))
    candidate = torch.cat([labels >= 0, matched >= 0], 1) & (_iou(all_boxes, truth) >= MATCH_IOU)
    if noise is None:
        noise = torch.rand(all_slots.shape, device=boxes.device)
    key = torch.where(candidate, noise, -1.0)
    key = F.pad(key, (0, max(count - key.shape[1], 0)), value=-1.0)
    drawn, index = key.topk(count)  # [B, N], each image's candidates in random order
    turn = torch.arange(count, device=boxes.device) + drawn
    first, place = (
        torch.where(drawn >= 0, turn, torch.inf).flatten().topk(count, largest=False, sorted=False)
    )
    image = place // count
    index = index.flatten()[place].clamp(max=all_slots.shape[1] - 1)
    valid = first < torch.inf
    # A padding RoI is a unit box, which is finite even if the prediction is not.
    unit = (torch.arange(4, device=boxes.device) >= 2).float()
    return RoIs(
        boxes=torch.where(valid[:, None], all_boxes[image, index], unit),
        image=image,
        slots=all_slots[image, index],
        valid=valid,
    )


def mask_targets(crops: Tensor, boxes: Tensor, rois: RoIs, size: int) -> Tensor:
    """The share of each cell of each RoI that the instance covers: RoIAlign of its mask.

    Cells are aligned with pixels as in detectron2. As in torchvision, targets are not rounded: a
    cell on the outline has the share that is covered, so that pasting the mask with a threshold of
    0.5 restores the outline. Rounding would move it by up to half a cell. Everything outside the
    instance's box is background.

    Args:
        crops: [B, M, P, P] uint8, the part of each mask inside its box.
        boxes: [B, M, 4] the boxes of the crops.
        rois: N of them.
        size: S.

    Returns:
        [N, S, S] float32 in [0, 1].
    """
    side = crops.shape[-1]
    frame = boxes[rois.image, rois.slots]
    low = frame[:, :2]
    extent = (frame[:, 2:] - low).clamp(min=1e-3)
    # The RoI in samples of the crop. A padding RoI may refer to an empty slot, whose box has no
    # extent.
    corner = torch.where(rois.valid[:, None], (rois.boxes[:, :2] - low) / extent * side, 0.0)
    opposite = torch.where(rois.valid[:, None], (rois.boxes[:, 2:] - low) / extent * side, 1.0)
    (x1, y1), (x2, y2) = corner.unbind(-1), opposite.unbind(-1)
    points = -(-side // size)  # at least one per sample of the crop, so that none is skipped
    rows = bilinear.cell_weights(y1, y2, size, points, side, edge=False)
    columns = bilinear.cell_weights(x1, x2, size, points, side, edge=False)
    own = crops[rois.image, rois.slots].float()
    return rows @ own @ columns.transpose(1, 2)


def roi_levels(boxes: Tensor, finest: int) -> Tensor:
    """Pyramid level of each RoI: floor(4 + log2(sqrt(area) / 224)) (Lin et al. 2017, equation 1),
    but at least ``finest`` and at most 5. [..., 4] to [...]."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    # torchvision's epsilon, so that RoIs of exactly 112 pixels get the same level as there.
    level = torch.floor(4 + torch.log2(sides.prod(-1).sqrt() / 224) + 1e-6)
    return level.clamp(finest, COARSEST).long()


def pool(
    levels: Sequence[Tensor],
    boxes: Tensor,
    image: Tensor,
    size: int,
    finest: int = 3,
    aligned: bool = True,
) -> Tensor:
    """RoIAlign of each RoI from the pyramid level that matches its size (:func:`roi_levels`).

    Every level pools all RoIs, but the RoIs of other levels are moved far outside of its map, where
    RoIAlign quickly returns zeros. So shapes stay fixed and RoIs need no sorting.

    Args:
        levels: from P<finest> on, each [B, C, h, w]; those after P5 are ignored.
        boxes: [N, 4] canvas pixels.
        image: [N] int64, the index in the batch of each RoI's image.
        size: the number of cells per side.
        finest: n of the first level, whose stride is 2**n.
        aligned: whether a cell's value belongs to its centre. False puts it into the corner, as
            torchvision's Mask R-CNN does, whose RoIs are thus half a cell away.

    Returns:
        [N, C, size, size].
    """
    level_of = roi_levels(boxes, finest)
    pooled = None
    for i, level in enumerate(levels[: COARSEST - finest + 1], finest):
        # In float32, because half precision would move a corner at 1,000 pixels by up to two.
        here = torch.where((level_of == i)[:, None], boxes, -1e4)
        part = _roi_align(level.float(), here, image, 1 / 2**i, size, aligned)
        # In place, because each of these takes 200 MiB for 1,024 RoIs with 256 channels.
        pooled = part if pooled is None else pooled.add_(part)
    assert pooled is not None
    return pooled.to(levels[0].dtype)


def _roi_align(
    level: Tensor, boxes: Tensor, image: Tensor, scale: float, size: int, aligned: bool
) -> Tensor:
    """[N, C, size, size] from boxes [N, 4] in pixels; ``scale`` is in cells per pixel."""
    if torch.are_deterministic_algorithms_enabled() and level.is_cuda:
        cells = boxes * scale
        if not aligned:  # then torchvision also makes every RoI at least a cell large
            cells = torch.cat([cells[:, :2], torch.maximum(cells[:, 2:], cells[:, :2] + 1)], 1)
            cells = cells + 0.5
        return bilinear.roi_align(level, cells, image, size)
    rows = torch.cat([image[:, None].to(boxes.dtype), boxes], 1)
    return roi_align(level, rows, size, scale, sampling_ratio=2, aligned=aligned)


class MaskHead(nn.Module):
    """Mask R-CNN's head: 3x3 convolutions, one transposed convolution, one mask per class.

    Args:
        channels: of the pyramid.
        num_classes: K.
        size: S, even; RoIs are pooled to S / 2 cells per side.
        num_convs: the number of convolutions before the transposed one.
    """

    def __init__(self, channels: int, num_classes: int, size: int = 28, num_convs: int = 4) -> None:
        super().__init__()
        self.size = size
        layers: list[nn.Module] = []
        for _ in range(num_convs):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(channels, channels, 2, stride=2), nn.ReLU(inplace=True)]
        self.tower = nn.Sequential(*layers)
        self.masks = nn.Conv2d(channels, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.masks.weight, std=0.001)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute mask logits.

        Args:
            features: [N, C, S / 2, S / 2].
            labels: [N], the one class of each RoI to compute, or None for all classes. Neither the
                losses nor detections need the masks of the other classes.

        Returns:
            [N, S, S], or [N, K, S, S] without ``labels``.
        """
        if labels is None:
            return self.masks(self.tower(features))
        x = self.tower(features)
        weight = self.masks.weight[labels, :, 0, 0]  # [N, C]
        logits = torch.bmm(weight[:, None], x.flatten(2)).view(-1, self.size, self.size)
        assert self.masks.bias is not None
        return logits + self.masks.bias[labels, None, None]


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of pairs of boxes, [..., 4] and [..., 4] to [...]."""
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(
        min=0
    )
    overlap = size.prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return overlap / (areas - overlap).clamp(min=1e-6)
