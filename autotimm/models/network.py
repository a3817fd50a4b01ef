"""The whole network in plain torch: backbone -> pyramid -> FCOS head -> mask head, and its losses.

torch.compile compiles ``forward``: its shapes are fixed, the device never waits for the host, and
the losses are float32 under any autocast precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from autotimm.models import assign, losses
from autotimm.models.backbone import Backbone, Norm
from autotimm.models.compiled import mark_dynamic
from autotimm.models.decode import decode
from autotimm.models.fcos import (
    FCOSHead,
    HeadOutputs,
    Locations,
    decode_boxes,
    level_shapes,
    locations,
)
from autotimm.models.losses import BoxQuality, LossSums, MaskLoss
from autotimm.models.mask_head import MaskHead, mask_targets, pool, sample_rois
from autotimm.models.pyramid import FPN, SimplePyramid
from autotimm.structures import Detections, InputError

CANVAS_MULTIPLE = 32
Layout = Literal["autotimm", "torchvision"]
MASKS_AT_ONCE = 400  # in detection: about 0.6 GB of float32 at 28 x 28 x 256


class Outputs(NamedTuple):
    """The result of :meth:`Network.forward` without ground truth."""

    head: HeadOutputs
    levels: list[Tensor]  # of the pyramid, finest first, to pool RoIs from


class Network(nn.Module):
    """FCOS with a Mask R-CNN mask branch after a call of :meth:`add_masks`.

    Args:
        backbone: a timm model name.
        num_classes: K.
        pretrained: as in :class:`Backbone`.
        fpn_channels: C of the pyramid and both heads.
        head_convs: the number of convolutions per tower of the FCOS head.
        freeze_backbone: whether the backbone gets no gradients and its batch norms keep their
            statistics.
        backbone_norm: ``norm`` of :class:`Backbone`.
        frozen_stages: as in :class:`Backbone`.
        with_masks: whether :meth:`add_masks` will be called.
        layout: ``torchvision`` builds the network as torchvision's detectors are, so that it
            computes what they do with their weights: biases in the towers' convolutions, locations
            at the corners of cells, RoIs likewise, and an output convolution of P2.
        box_quality: what the centerness branch learns (:func:`losses.detection_losses`).
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        pretrained: bool | str | Path = True,
        fpn_channels: int = 256,
        head_convs: int = 4,
        freeze_backbone: bool = False,
        backbone_norm: Norm = "batch",
        frozen_stages: int = 0,
        with_masks: bool = False,
        layout: Layout = "autotimm",
        box_quality: BoxQuality = "centerness",
    ) -> None:
        super().__init__()
        _check_choice("layout", layout, Layout)
        _check_choice("box_quality", box_quality, BoxQuality)
        self.box_quality = box_quality
        as_torchvision = layout == "torchvision"
        self.half_stride = not as_torchvision
        """As in :func:`autotimm.models.fcos.locations`."""
        self.aligned = not as_torchvision
        """As in :func:`autotimm.models.mask_head.pool`."""
        self.backbone = Backbone(backbone, pretrained, backbone_norm, frozen_stages, with_masks)
        channels, strides = self.backbone.channels, self.backbone.strides
        self.with_masks = with_masks
        self.fpn: FPN | SimplePyramid = (
            SimplePyramid(channels[0], fpn_channels, strides[0])
            if self.backbone.plain
            else FPN(channels, fpn_channels, strides, as_torchvision)
        )
        self.head = FCOSHead(fpn_channels, num_classes, head_convs, tower_bias=as_torchvision)
        self.mask_head: MaskHead | None = None
        self.mask_rois = 0
        self.mask_loss: MaskLoss = "bce"
        self.lockstep = False
        """Whether :meth:`detect` calls the mask head equally often on all ranks, for any number of
        detections. Sharded parameters need this, because all ranks gather them together."""
        self.frozen = freeze_backbone
        if freeze_backbone:
            self.backbone.requires_grad_(False)
            self.train(self.training)

    def add_masks(self, size: int = 28, rois: int = 32, loss: MaskLoss = "bce") -> MaskHead:
        """Add a mask branch to the network and return it.

        Args:
            size: S, even.
            rois: the average number of RoIs per image to train on (:func:`sample_rois`).
            loss: of the masks (:func:`losses.mask_loss`).
        """
        _check_choice("mask_loss", loss, MaskLoss)
        if not self.with_masks:
            raise ValueError("the network was made without with_masks=True")
        head = self.head.classes
        self.mask_head = MaskHead(head.in_channels, head.out_channels, size)
        self.mask_rois = rois
        self.mask_loss = loss
        return self.mask_head

    @property
    def finest(self) -> int:
        """n of the finest level P<n> that RoIs are pooled from: 2, or 3 if the backbone has no map
        at stride 4."""
        return self.fpn.finest

    def train(self, mode: bool = True) -> Network:
        """As ``nn.Module.train``, but a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(
        self,
        image: Tensor,
        boxes: Tensor | None = None,
        labels: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Outputs | LossSums:
        """Compute the loss sums of a batch, or the outputs if there is no ground truth.

        Args:
            image: [B, 3, H, W], normalised; H and W are multiples of 32.
            boxes, labels, masks: as in :class:`autotimm.structures.Batch`. Only the mask branch
                needs masks.
        """
        shapes = _shapes(image)
        levels = self.fpn(self.backbone(image))
        head = self.head(levels[3 - self.finest :])
        if boxes is None or labels is None:
            return Outputs(head, levels)
        with torch.autocast(image.device.type, enabled=False):
            where = locations(shapes, image.device, self.half_stride)
            targets = assign.targets(where, boxes, labels)
            detection = losses.detection_losses(head, targets, self.box_quality)
        zero = detection["classes"].new_zeros(())
        mask, rois = zero, zero
        if self.mask_head is not None:
            if masks is None:
                raise ValueError("the mask branch trains on masks, and the batch has none")
            mask, rois = self._mask_loss(
                self.mask_head, head, levels, where, targets, boxes, labels, masks
            )
        return LossSums(masks=mask, rois=rois, **detection)

    def _mask_loss(
        self,
        mask_head: MaskHead,
        head: HeadOutputs,
        levels: list[Tensor],
        where: Locations,
        targets: assign.Targets,
        boxes: Tensor,
        labels: Tensor,
        masks: Tensor,
    ) -> tuple[Tensor, Tensor]:
        predicted = decode_boxes(head.distances.detach(), where)
        count = self.mask_rois * len(boxes)
        rois = sample_rois(predicted, targets.matched, boxes, labels, count)
        of_class = labels[rois.image, rois.slots].clamp(min=0)
        size = mask_head.size // 2
        features = pool(levels, rois.boxes, rois.image, size, self.finest, self.aligned)
        logits = mask_head(features, of_class)
        with torch.autocast(boxes.device.type, enabled=False):
            target = mask_targets(masks, boxes, rois, mask_head.size)
            loss = losses.mask_loss(logits, target, rois.valid, self.mask_loss)
        return loss, rois.valid.sum().float()

    @torch.no_grad()
    def detect(
        self,
        image: Tensor,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        max_detections: int = 100,
    ) -> list[Detections]:
        """Detections of ``image`` [B, 3, H, W] in its pixels, best first.

        The mask branch adds ``masks`` [N, S, S], probabilities inside each box.
        :mod:`autotimm.models.paste` turns them into masks of any image size.
        """
        # The layout of the data module's batches, so that other images use the same graphs.
        image = image.contiguous(memory_format=torch.channels_last)
        outputs = self(image)
        shapes = _shapes(image)
        detections = decode(
            outputs.head,
            locations(shapes, image.device, self.half_stride),
            [h * w for h, w in shapes],
            (image.shape[-2], image.shape[-1]),
            score_thresh,
            nms_thresh,
            max_detections,
        )
        if self.mask_head is not None:
            images = max(MASKS_AT_ONCE // max_detections, 1)
            for i in range(0, len(detections), images):
                some = slice(i, i + images)
                own = [level[some] for level in outputs.levels]
                calls = -(-max_detections * len(own[0]) // MASKS_AT_ONCE) if self.lockstep else 0
                where = self.finest, self.aligned
                _add_masks(self.mask_head, own, where, detections[some], calls)
        return detections


def _add_masks(
    head: MaskHead,
    levels: list[Tensor],
    where: tuple[int, bool],
    detections: list[Detections],
    calls: int = 0,
) -> None:
    """Add ``masks`` to the detections of a few images.

    Args:
        head: computes ``MASKS_AT_ONCE`` masks per call.
        levels: of the pyramid, for these images.
        where: ``finest`` and ``aligned`` of :func:`autotimm.models.mask_head.pool`.
        detections: the detections of each image; changed in place.
        calls: the minimum number of calls of ``head``; extra ones get inputs of zeros.
    """
    counts = [len(one["labels"]) for one in detections]
    boxes = torch.cat([one["boxes"] for one in detections])
    labels = torch.cat([one["labels"] for one in detections])
    image = torch.tensor([i for i, count in enumerate(counts) for _ in range(count)])
    features = pool(levels, boxes, image.to(labels), head.size // 2, *where)
    parts = [boxes.new_zeros((0, head.size, head.size))]
    for some, of_class in zip(
        features.split(MASKS_AT_ONCE), labels.split(MASKS_AT_ONCE), strict=True
    ):
        if len(some):  # an empty tensor would compile another graph
            mark_dynamic(0, some, of_class)
            parts.append(head(some, of_class).float().sigmoid())
    for _ in range(len(parts) - 1, calls):
        head(features.new_zeros((2, *features.shape[1:])), labels.new_zeros(2))
    for one, masks in zip(detections, torch.cat(parts).split(counts), strict=True):
        one["masks"] = masks


def _shapes(image: Tensor) -> list[tuple[int, int]]:
    height, width = image.shape[-2:]
    if height % CANVAS_MULTIPLE or width % CANVAS_MULTIPLE:
        raise InputError(
            f"an image of {height} x {width} pixels does not divide into the pyramid's cells: "
            f"pad both sides to multiples of {CANVAS_MULTIPLE}"
        )
    return level_shapes(height, width)


def _check_choice(name: str, value: object, kind: object) -> None:
    """InputError unless ``value`` is one of the literals of ``kind``."""
    choices = get_args(kind)
    if value not in choices:
        known = f"{', '.join(choices[:-1])} or {choices[-1]}"
        raise InputError(f"{name}={value!r} is unknown: take {known}")
