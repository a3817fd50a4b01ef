"""The contestants of ``train_step.py``, and the batches that they all get.

Needs torch, torchvision and timm alone, and of autotimm the network: a machine with a GPU may have
no more. Images are noise; the number of instances and the spread of their sizes are COCO's, as in
``photos.py``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autotimm.models import paste
from autotimm.models.backbone import Norm
from autotimm.models.compiled import compile_in_place, mark_dynamic
from autotimm.models.network import Network
from autotimm.structures import MASK_CROP

CLASSES = 80
_INSTANCES = 7.3  # an image, on average
_SIDE = (3.73, 1.18)  # mean and deviation of the logarithm of a side, in pixels at 640 pixels
_FEWEST_SLOTS = 8


@dataclass(frozen=True, slots=True)
class Truth:
    """A batch: [B, 3, H, W] float32 channels last, and for each image N boxes [N, 4] and labels."""

    image: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]


def batch(images: int, height: int, width: int, seed: int) -> Truth:
    """Synthetic images and instances on the CPU; the same arguments give the same batch."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.randn(images, 3, height, width, generator=draw)
    boxes, labels = [], []
    for _ in range(images):
        uniform = 1 - torch.rand(1, generator=draw).item()
        count = int(math.log(uniform) / math.log(_INSTANCES / (1 + _INSTANCES)))  # geometric
        sides = (torch.randn(count, 1, generator=draw) * _SIDE[1] + _SIDE[0]).exp()
        sides = (sides * torch.randn(count, 2, generator=draw).mul(0.3).exp()).clamp(min=5)
        extent = torch.tensor([width, height])
        sides = (sides * max(height, width) / 640).minimum(extent * 0.95)
        low = torch.rand(count, 2, generator=draw) * (extent - sides)
        boxes.append(torch.cat([low, low + sides], 1))
        labels.append(torch.randint(0, CLASSES, (count,), generator=draw))
    return Truth(image.contiguous(memory_format=torch.channels_last), boxes, labels)


def _disc(height: int, width: int) -> Tensor:
    """[height, width] uint8: what every instance's mask is, stretched into its box."""
    y = (torch.arange(height) + 0.5) / height - 0.5
    x = (torch.arange(width) + 0.5) / width - 0.5
    return (y[:, None] ** 2 + x**2 <= 0.25).to(torch.uint8)


class Ours:
    """FCOS with the mask branch, or without."""

    def __init__(self, backbone: str, masks: bool, norm: Norm = "batch") -> None:
        network = Network(backbone, CLASSES, pretrained=False, with_masks=masks, backbone_norm=norm)
        if masks:
            network.add_masks()
        self.model, self.masks, self._threshold = network, masks, 0.05

    def inputs(self, truth: Truth, device: torch.device) -> Any:
        """The batch as this model takes it, on the device."""
        most = max(map(len, truth.boxes))
        slots = max(_FEWEST_SLOTS, 1 << max(most - 1, 0).bit_length())
        count = len(truth.boxes)
        boxes, labels = torch.zeros(count, slots, 4), torch.full((count, slots), -1)
        masks = torch.zeros(count, slots, MASK_CROP, MASK_CROP, dtype=torch.uint8)
        for i, (own, of_class) in enumerate(zip(truth.boxes, truth.labels, strict=True)):
            boxes[i, : len(own)], labels[i, : len(own)] = own, of_class
            masks[i, : len(own)] = _disc(MASK_CROP, MASK_CROP)
        tensors = (truth.image, boxes, labels, *([masks] if self.masks else []))
        return [t.to(device) for t in tensors]

    def loss(self, inputs: Any) -> Tensor:
        """Forward pass in training."""
        image, *truth = inputs
        mark_dynamic(1, *truth)
        sums = self.model(image, *truth)
        return torch.stack(list(sums.normalised(sums.counts().detach()).values())).sum()

    def detect(self, inputs: Any) -> list[int]:
        """Detections an image, with masks drawn at the size of the canvas where it has any."""
        found = self.model.detect(inputs[0], score_thresh=self._threshold)
        height, width = inputs[0].shape[-2:]
        for one in found:
            if self.masks:
                paste.dense(one["masks"], one["boxes"], height, width)
        return [len(one["scores"]) for one in found]

    def threshold(self, value: float) -> None:
        """Sets the least score of a detection."""
        self._threshold = value


class Torchvision:
    """One of torchvision's detectors, its own resizing and normalisation switched off.

    Random weights, so all of the backbone trains and its batch norms are plain ones, as ours.
    """

    def __init__(self, build: Callable[..., nn.Module], masks: bool, size: int) -> None:
        model = build(num_classes=CLASSES + masks, min_size=size, max_size=size)
        transform: Any = model.transform
        transform.resize = lambda image, target: (image, target)
        transform.normalize = lambda image: image
        # Which tensor cores are faster with; ours takes the layout of its images.
        self.model, self.masks = model.to(memory_format=torch.channels_last), masks

    def inputs(self, truth: Truth, device: torch.device) -> Any:
        """As :meth:`Ours.inputs`; masks are dense."""
        height, width = truth.image.shape[-2:]
        targets = []
        for boxes, labels in zip(truth.boxes, truth.labels, strict=True):
            target = {"boxes": boxes, "labels": labels + self.masks}  # its Mask R-CNN counts from 1
            if self.masks:
                dense = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
                for mask, (x1, y1, x2, y2) in zip(dense, boxes.round().int().tolist(), strict=True):
                    own = mask[y1:y2, x1:x2]
                    own.copy_(_disc(*own.shape))
                target["masks"] = dense
            targets.append({key: value.to(device) for key, value in target.items()})
        return list(truth.image.to(device)), targets

    def loss(self, inputs: Any) -> Tensor:
        """As :meth:`Ours.loss`."""
        images, targets = inputs
        return torch.stack(list(self.model(images, targets).values())).sum()

    def detect(self, inputs: Any) -> list[int]:
        """As :meth:`Ours.detect`."""
        return [len(one["scores"]) for one in self.model(inputs[0])]

    def threshold(self, value: float) -> None:
        """As :meth:`Ours.threshold`."""
        model: Any = self.model
        (model.roi_heads if self.masks else model).score_thresh = value


Contestant = Ours | Torchvision


def contestant(name: str, backbone: str, size: int) -> Contestant:
    """A model by its name, less what ``compile_contestant`` does.

    Args:
        name: ``ours``, ``ours boxes``, ``maskrcnn`` or ``fcos``.
        backbone: ``resnet50``, or for a look a smaller one that torchvision has, too.
        size: longer side of the canvas.
    """
    torch.manual_seed(0)
    if name.startswith("ours"):
        return Ours(backbone, name == "ours")
    return Torchvision(_torchvision(name, backbone), name == "maskrcnn", size)


def _torchvision(name: str, backbone: str) -> Callable[..., nn.Module]:
    from torchvision.models import detection
    from torchvision.models.detection import backbone_utils
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    if backbone == "resnet50":
        published = {
            "maskrcnn": detection.maskrcnn_resnet50_fpn,
            "fcos": detection.fcos_resnet50_fpn,
        }
        return functools.partial(published[name], weights=None, weights_backbone=None)

    options: dict[str, Any] = {"backbone_name": backbone, "weights": None, "trainable_layers": 5}

    def build(num_classes: int, min_size: int, max_size: int) -> nn.Module:
        sizes = {"min_size": min_size, "max_size": max_size}
        if name == "maskrcnn":
            body = backbone_utils.resnet_fpn_backbone(**options)
            return detection.MaskRCNN(body, num_classes, **sizes)
        levels = LastLevelP6P7(256, 256)
        body = backbone_utils.resnet_fpn_backbone(
            **options, returned_layers=[2, 3, 4], extra_blocks=levels
        )
        return detection.FCOS(body, num_classes, **sizes)

    return build


def compile_contestant(one: Contestant, how: str, mode: str | None) -> None:
    """Compiles a model in place.

    Args:
        one: ours, or torchvision's.
        how: ``whole``, or ``parts``: of torchvision's the backbone and the convolutional heads,
            whose shapes are fixed, since the rest breaks its graph or recompiles.
        mode: of torch.compile.
    """
    options = {"mode": mode} if mode else {}
    if isinstance(one, Ours):
        compile_in_place(one.model, options)
        if one.model.mask_head is not None:
            compile_in_place(one.model.mask_head, options)
    elif how == "whole":
        one.model.compile(**options)
    else:
        model: Any = one.model
        heads = [model.rpn.head] if one.masks else model.head.children()
        for part in (model.backbone, *heads):
            part.compile(**options, dynamic=False)
