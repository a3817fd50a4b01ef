"""The losses as sums in float32, and the counts to divide them by.

Sums and counts are separate so that the counts can be averaged over ranks before the division. The
gradients of a distributed step then equal those of one process on the combined batch. Without this,
a model loses about one point of AP (open-mmlab/mmdetection#2933).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from autotimm.models.assign import Targets
from autotimm.models.fcos import HeadOutputs

BoxQuality = Literal["centerness", "iou"]
MaskLoss = Literal["bce", "bce+dice"]


class LossSums(NamedTuple):
    """Sums over this rank's batch, and their divisors."""

    classes: Tensor  # focal loss over all locations; divided by positives
    boxes: Tensor  # weighted GIoU loss at positive locations; divided by box_weights
    centerness: Tensor  # of the box quality at positive locations; divided by positives
    masks: Tensor  # the mean over cells, per RoI; divided by rois; zero without a mask branch
    positives: Tensor
    box_weights: Tensor  # their sum: of centerness, or of ones with the IoU as box quality
    rois: Tensor

    def counts(self) -> Tensor:
        """[3]: positives, the sum of box weights, RoIs."""
        return torch.stack([self.positives, self.box_weights, self.rois])

    def normalised(self, counts: Tensor) -> dict[str, Tensor]:
        """The four losses by name, divided by their counts.

        Args:
            counts: [3], those of :meth:`counts` averaged over ranks. Each is raised to 1 if it is
                smaller, because a batch may contain no object.
        """
        positives, box_weights, rois = counts.clamp(min=1.0)
        return {
            "classes": self.classes / positives,
            "boxes": self.boxes / box_weights,
            "centerness": self.centerness / positives,
            "masks": self.masks / rois,
        }


def detection_losses(
    outputs: HeadOutputs, targets: Targets, box_quality: BoxQuality = "centerness"
) -> dict[str, Tensor]:
    """The detection part of :class:`LossSums`, by field name. Only the focal loss uses background
    locations.

    Args:
        outputs: of the head.
        targets: of the same locations.
        box_quality: what the centerness branch learns. ``centerness`` follows from the location
            alone and weighs the GIoU losses, as in FCOS. ``iou`` is the IoU of the predicted box
            with its target, without a gradient to the box, and all GIoU losses have the same
            weight, as in AdelaiDet's FCOS.
    """
    positive = (targets.labels >= 0).float()
    distances = outputs.distances.float()
    quality, weight = targets.centerness, targets.centerness  # zero at background
    if box_quality == "iou":
        quality, weight = iou(distances.detach(), targets.distances), positive
    giou = giou_loss(distances, targets.distances)
    loss = F.binary_cross_entropy_with_logits(outputs.centerness.float(), quality, reduction="none")
    return {
        "classes": focal_loss(outputs.classes.float(), targets.labels).sum(),
        "boxes": (giou * weight).sum(),
        "centerness": (loss * positive).sum(),
        "positives": positive.sum(),
        "box_weights": weight.sum(),
    }


def focal_loss(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss of every class of every location (Lin et al. 2017, equation 5).

    Args:
        logits: [..., K].
        labels: [...], -1 for background, which is a negative of every class.

    Returns:
        [..., K].
    """
    target = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    signed = torch.where(target, logits, -logits)
    # log p_t and 1 - p_t directly from the logit: no overflow, and no probability rounds to 1.
    log_probability = F.logsigmoid(signed)
    weight = torch.where(target, alpha, 1 - alpha)
    return -weight * torch.sigmoid(-signed) ** gamma * log_probability


def giou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al. 2019) of pairs of boxes, as distances from a common point.

    Args:
        predicted, target: [..., 4] left, top, right, bottom, not negative, both in the same unit.

    Returns:
        [...], in [0, 2].
    """
    tiny = torch.finfo(predicted.dtype).eps
    smaller, larger = torch.minimum(predicted, target), torch.maximum(predicted, target)
    overlap, hull = _area(smaller), _area(larger)
    union = _area(predicted) + _area(target) - overlap
    return 1 - overlap / (union + tiny) + (hull - union) / (hull + tiny)


def iou(predicted: Tensor, target: Tensor) -> Tensor:
    """IoU of pairs of boxes, given as for :func:`giou_loss`. [..., 4] and [..., 4] to [...]."""
    overlap = _area(torch.minimum(predicted, target))
    union = _area(predicted) + _area(target) - overlap
    return overlap / (union + torch.finfo(predicted.dtype).eps)


def _area(distances: Tensor) -> Tensor:
    """Areas [...] of boxes given by distances [..., 4].

    The backward pass of ``prod`` would wait for the device to learn whether a factor is zero.
    """
    left, top, right, bottom = distances.unbind(-1)
    return (left + right) * (top + bottom)


def mask_loss(logits: Tensor, target: Tensor, valid: Tensor, kind: MaskLoss = "bce") -> Tensor:
    """The mean binary cross-entropy over the cells of a RoI, summed over the valid RoIs.

    Padding RoIs are not removed but have weight zero. So shapes stay fixed, and every parameter
    gets a gradient, perhaps of zeros, on a rank without any RoI.

    Args:
        logits, target: [N, S, S]; targets in [0, 1].
        valid: [N] bool.
        kind: ``bce+dice`` adds :func:`dice_loss` of the RoI with the same weight.
    """
    logits = logits.float()
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((-2, -1))
    if kind == "bce+dice":
        loss = loss + dice_loss(logits, target)
    return (loss * valid).sum()


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - (2 sum(p t) + 1) / (sum(p^2) + sum(t^2) + 1) over the cells of each RoI.

    This is V-Net's loss (Milletari et al. 2016), which does not depend on how much of the RoI the
    instance covers. The ones keep it smooth where neither covers any cell.

    Args:
        logits, target: [N, S, S]; targets in [0, 1].

    Returns:
        [N], in [0, 1).
    """
    probability = logits.sigmoid()
    both = (probability * target).sum((-2, -1))
    squares = (probability**2).sum((-2, -1)) + (target**2).sum((-2, -1))
    return 1 - (2 * both + 1) / (squares + 1)
