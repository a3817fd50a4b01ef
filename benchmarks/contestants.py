"""The networks that equal_budget.py trains on the same batches, each with its recipe."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.rpn import AnchorGenerator, RPNHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from autotimm import InputError, InstanceSegmentor, ObjectDetector
from autotimm.coco import masks
from autotimm.models import paste
from autotimm.structures import Detections
from autotimm.tasks import optimization

Factor = Callable[[int], float]
"""Step -> what the learning rate is multiplied by."""
_BACKBONES = ("network.backbone.", "backbone.body.")  # ours and torchvision's


@dataclass(frozen=True, slots=True)
class Contestant:
    """A network, how its loss is had and how it is trained."""

    model: nn.Module
    loss: Callable[[dict[str, Any]], Tensor]
    detect: Callable[[dict[str, Any]], list[Detections]]
    optimizer: torch.optim.Optimizer
    factor: Factor
    clip: float | None


def make(
    name: str, classes: int, weights: dict[str, Tensor], steps: int, given: argparse.Namespace
) -> Contestant:
    """The contestant of a name, which :func:`check` has accepted."""
    kind, settings = _parsed(name)
    if kind == "autotimm":
        return ours(classes, weights, steps, given, settings)
    return THEIRS[kind](classes, weights, steps, given)


def check(name: str) -> None:
    """InputError unless ``name`` is a contestant, perhaps with settings: ``autotimm lr=0.01``."""
    kind, settings = _parsed(name)
    if kind not in ("autotimm", *THEIRS):
        raise InputError(f"--only: {name!r} is none of autotimm, {', '.join(THEIRS)}")
    known = {*signature(ObjectDetector).parameters, *signature(InstanceSegmentor).parameters}
    if unknown := sorted(set(settings) - known):
        raise InputError(f"--only: {unknown[0]!r} is no setting of InstanceSegmentor")


def _parsed(name: str) -> tuple[str, dict[str, Any]]:
    """A contestant's name without its settings, and these: numbers, true, false, or text."""
    first, *words = name.split()
    if first != "autotimm":
        return name, {}
    pairs = [word.partition("=") for word in words]
    return first, {key: _value(text) for key, _, text in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def ours(
    classes: int,
    weights: dict[str, Tensor],
    steps: int,
    given: argparse.Namespace,
    settings: dict[str, Any],
) -> Contestant:
    """InstanceSegmentor under the recipe of launch/small_cpu.yaml, with other ``settings``."""
    usual = {
        "fpn_channels": given.fpn_channels,
        "head_convs": given.head_convs,
        "mask_rois": max(given.boxes // 4, 1),
    }
    model = InstanceSegmentor(
        given.backbone, classes, pretrained=False, compile_model=False, **{**usual, **settings}
    )
    missing, _ = model.network.backbone.model.load_state_dict(weights, strict=False)
    assert not missing, missing

    def loss(batch: dict[str, Any]) -> Tensor:
        return torch.stack(list(model.losses(batch).values())).sum()  # type: ignore[arg-type]

    @torch.no_grad()
    def detect(batch: dict[str, Any]) -> list[Detections]:
        return model.predict_step(batch, 0)  # type: ignore[arg-type]

    return Contestant(model, loss, detect, adamw(model, given), cosine(steps), 10.0)


class TimmFPN(nn.Module):
    """torchvision's ``BackboneWithFPN`` with the maps of any timm backbone at strides 4 to 32."""

    def __init__(
        self, backbone: str, weights: dict[str, Tensor], channels: int, improved: bool
    ) -> None:
        super().__init__()
        self.body = timm.create_model(
            backbone, features_only=True, out_indices=(-4, -3, -2, -1), pretrained=False
        )
        missing, _ = self.body.load_state_dict(weights, strict=False)
        assert not missing, missing
        norm = nn.BatchNorm2d if improved else None
        inside = self.body.feature_info.channels()
        self.fpn = FeaturePyramidNetwork(inside, channels, LastLevelMaxPool(), norm)
        self.out_channels = channels

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = self.body(image)
        return self.fpn(OrderedDict((str(i), one) for i, one in enumerate(maps)))


def theirs(
    classes: int,
    weights: dict[str, Tensor],
    steps: int,
    given: argparse.Namespace,
    improved: bool = False,
    our_recipe: bool = False,
) -> Contestant:
    """torchvision's Mask R-CNN with the heads of its first or (``improved``) second version."""
    width = given.fpn_channels
    body = TimmFPN(given.backbone, weights, width, improved)
    heads: dict[str, Any] = {"mask_head": MaskRCNNHeads(width, [width] * 4, 1)}
    if improved:  # as maskrcnn_resnet50_fpn_v2 has them
        anchors = AnchorGenerator(
            tuple((side,) for side in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5
        )
        heads |= {
            "rpn_anchor_generator": anchors,
            "rpn_head": RPNHead(width, anchors.num_anchors_per_location()[0], conv_depth=2),
            "box_head": FastRCNNConvFCHead((width, 7, 7), [width] * 4, [1024], nn.BatchNorm2d),
            "mask_head": MaskRCNNHeads(width, [width] * 4, 1, norm_layer=nn.BatchNorm2d),
        }
    model = MaskRCNN(
        body,
        classes + 1,
        min_size=min(given.size),
        max_size=max(given.size),
        image_mean=[0.0] * 3,  # the batches are normalised
        image_std=[1.0] * 3,
        rpn_pre_nms_top_n_train=given.proposals,
        rpn_post_nms_top_n_train=given.proposals,
        rpn_pre_nms_top_n_test=given.proposals,
        rpn_post_nms_top_n_test=given.proposals,
        box_batch_size_per_image=given.boxes,
        **heads,
    )
    model.roi_heads.mask_predictor = MaskRCNNPredictor(width, width, classes + 1)
    # Masks are to be drawn at the original size, not at the canvas'.
    model.transform.postprocess = lambda found, *_: found  # type: ignore[method-assign]

    def loss(batch: dict[str, Any]) -> Tensor:
        targets = []
        height, width = batch["image"].shape[-2:]
        for boxes, labels, crops in zip(
            batch["boxes"], batch["labels"], batch["masks"], strict=True
        ):
            real = labels >= 0
            dense = paste.dense(crops[real].float(), boxes[real], height, width)
            targets.append({"boxes": boxes[real], "labels": labels[real] + 1, "masks": dense})
        return torch.stack(list(model(list(batch["image"]), targets).values())).sum()

    @torch.no_grad()
    def detect(batch: dict[str, Any]) -> list[Detections]:
        found = model(list(batch["image"]))
        of_image = zip(
            found, batch["scale"], batch["offset"], batch["original_size"].tolist(), strict=True
        )
        return [original(one, *where) for one, *where in of_image]

    if our_recipe:
        return Contestant(model, loss, detect, adamw(model, given), cosine(steps), 10.0)
    rate = 0.02 * given.batch_size / 16
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, rate, momentum=0.9, weight_decay=1e-4)

    def factor(step: int) -> float:
        warm = min(1000, steps // 26)  # the reference warms up within the first of 26 epochs
        if step < warm:
            return 0.001 + 0.999 * step / warm
        return 0.1 ** sum(step >= steps * part // 26 for part in (16, 22))

    return Contestant(model, loss, detect, optimizer, factor, None)


def original(
    found: dict[str, Tensor], scale: Tensor, offset: Tensor, size: list[int]
) -> Detections:
    """torchvision's detections on the canvas, in the original image, pasted by its own function."""
    height, width = size
    boxes = (found["boxes"] - offset.repeat(2)) / scale.repeat(2)
    dense = paste_masks_in_image(found["masks"], boxes, (height, width))[:, 0] >= 0.5
    limits = boxes.new_tensor([width, height, width, height])
    return Detections(
        boxes=boxes.clamp(min=0).minimum(limits),
        labels=found["labels"] - 1,
        scores=found["scores"],
        rles=[masks.encode(mask) for mask in dense.cpu().numpy()],
    )


def adamw(model: nn.Module, given: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW without weight decay of norms and biases; the backbone may learn slower."""
    groups: dict[tuple[float, float], list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = given.backbone_lr_factor if name.startswith(_BACKBONES) else 1.0
            groups[1e-3 * factor, 1e-4 if parameter.ndim > 1 else 0.0].append(parameter)
    return torch.optim.AdamW(
        [{"params": some, "lr": lr, "weight_decay": decay} for (lr, decay), some in groups.items()]
    )


def cosine(steps: int) -> Factor:
    return partial(optimization.lr_factor, total_steps=steps, warmup_steps=50, scheduler="cosine")


THEIRS: dict[str, Callable[..., Contestant]] = {
    "torchvision": theirs,
    "torchvision with our recipe": partial(theirs, our_recipe=True),
    "torchvision v2 heads": partial(theirs, improved=True),
    "torchvision v2 heads with our recipe": partial(theirs, improved=True, our_recipe=True),
}
