"""Weights of torchvision's detectors, by name and from their files, as checkpoints of this package.

FCOS becomes a whole :class:`ObjectDetector`. Of Mask R-CNN, backbone, pyramid and mask head have a
place here; its proposals and its box head do not. Of any other detector on a ResNet with a pyramid,
backbone and pyramid are taken.

Norms that torchvision has and this package does not (in the pyramid and the mask head of Mask
R-CNN's second version) become a factor and a bias of the convolution before them, which computes
the same in evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.models import get_model_weights
from torchvision.models.detection import FCOS_ResNet50_FPN_Weights

from autotimm.files import urls
from autotimm.structures import InputError

PREFIX = "torchvision/"
NAMES = ("fcos_resnet50_fpn", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")
"""The models that torchvision publishes and this package takes."""

_NO_CLASS = ("__background__", "N/A")
_EPS = 1e-5  # of timm's batch norms in a ResNet, and of torchvision's norms
_RESNETS = {  # by the blocks of the stages, and whether these are bottlenecks
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
_FCOS = {  # torchvision's names of its parts, and ours
    "head.classification_head.conv.": "head.class_tower.",
    "head.classification_head.cls_logits.": "head.classes.",
    "head.regression_head.conv.": "head.box_tower.",
    "head.regression_head.bbox_reg.": "head.distances.",
    "head.regression_head.bbox_ctrness.": "head.centerness.",
}
_MASKS = {
    "roi_heads.mask_predictor.conv5_mask.": "mask_head.tower.8.",
    "roi_heads.mask_predictor.mask_fcn_logits.": "mask_head.masks.",
}


def download(name: str) -> dict[str, Any]:
    """The checkpoint of a model that torchvision publishes, fetched once by torch's hub.

    Args:
        name: ``torchvision/`` and one of ``NAMES``.

    Raises:
        InputError: there is no such model, or its weights cannot be fetched.
    """
    model = name.removeprefix(PREFIX)
    if model not in NAMES:
        known = ", ".join(PREFIX + one for one in NAMES)
        raise InputError(f"{name} is not one of torchvision's models that can be taken: {known}")
    weights: Any = next(iter(get_model_weights(model)))
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    # The network, the disk and the file each raise different exceptions.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise InputError(
            f"{name}: torchvision's weights cannot be fetched ({reason}): fetch {weights.url} on a "
            f"machine that has a network, and give the path of that file"
        ) from error
    return as_checkpoint(state, name)


def is_state(content: object) -> bool:
    """Whether a file's content is the state dict of a detector of torchvision."""
    return isinstance(content, dict) and "backbone.body.conv1.weight" in content


def as_checkpoint(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Convert a state dict of torchvision's to the content of a checkpoint of this package.

    Args:
        state: with the names that torchvision's detectors have, or had before version 0.13.
        name: of the file or model, for messages.

    Returns:
        ``state_dict``, ``hyper_parameters``, ``categories`` and ``preprocessing``. The categories
        are COCO's 80 if there are rows for its 91 numbers. Otherwise they are None, because
        torchvision does not keep the names of classes.

    Raises:
        InputError: the backbone is not a ResNet, or tensors are missing or of odd shapes.
    """
    try:
        return _converted(dict(state))
    except (KeyError, ValueError, IndexError, RuntimeError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(
            f"{urls.shown(name)} cannot be read as weights of a detector of torchvision's on a "
            f"ResNet ({type(error).__name__}: {reason})"
        ) from error


def _converted(state: dict[str, Tensor]) -> dict[str, Any]:
    # Files with these names of the mask head are from the time when frozen norms had no epsilon.
    eps = 0.0 if "roi_heads.mask_head.mask_fcn1.weight" in state else _EPS
    state = {_present_name(key): value for key, value in state.items()}
    body = _below(state, "backbone.body.")
    own = {f"backbone.model.{key}": value for key, value in _backbone(body, eps).items()}
    own |= {f"fpn.{key}": v for key, v in _pyramid(_folded(_below(state, "backbone.fpn."))).items()}
    settings: dict[str, Any] = {
        "backbone": _resnet(body),
        "fpn_channels": len(own["fpn.output.0.weight"]),
        "layout": "torchvision",
        "nms_thresh": 0.6,  # torchvision's
    }
    rows, names = None, None
    if "head.regression_head.bbox_ctrness.weight" in state:
        own |= _renamed(state, _FCOS)
        own["head.scales"] = torch.ones(5)  # which torchvision does without
        convs = [key for key in own if re.fullmatch(r"head\.box_tower\.\d+\.weight", key)]
        settings["head_convs"] = len(convs) // 2  # each has a norm
        rows, names = _classes(own, "head.classes.", background=False)
    tower = _folded(_below(state, "roi_heads.mask_head."))
    if tower:
        for i in range(4):
            own |= {f"mask_head.tower.{2 * i}.{k}": tower[f"{i}.0.{k}"] for k in ("weight", "bias")}
        own |= _renamed(state, _MASKS)
        settings["mask_size"] = 28
        rows, names = _classes(own, "mask_head.masks.", background=True)
    return {
        "state_dict": {f"network.{key}": value for key, value in own.items()},
        "hyper_parameters": {**settings, "num_classes": rows or 1},
        "categories": names,
        "preprocessing": {
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "interpolation": "bilinear",
            "pixel_range": None,
        },
    }


def _present_name(key: str) -> str:
    """The name that torchvision gives a tensor since version 0.13."""
    key = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", key)
    return re.sub(r"mask_fcn(\d)\.", lambda found: f"{int(found[1]) - 1}.0.", key)


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    return {
        ours + key: value
        for theirs, ours in names.items()
        for key, value in _below(state, theirs).items()
    }


def _backbone(body: Mapping[str, Tensor], eps: float) -> dict[str, Tensor]:
    """The tensors of timm's ResNet, whose norms have another epsilon than ``eps`` and count."""
    own = dict(body)
    for key, variance in body.items():
        norm, _, last = key.rpartition(".")
        if last == "running_var":
            factor = ((variance.double() + _EPS) / (variance.double() + eps)).sqrt()
            weight = body[f"{norm}.weight"]
            own[f"{norm}.weight"] = weight if eps == _EPS else (weight * factor).to(weight)
            own.setdefault(f"{norm}.num_batches_tracked", torch.tensor(0))
    return own


def _resnet(body: Mapping[str, Tensor]) -> str:
    blocks = tuple(
        len({key.split(".")[1] for key in body if key.startswith(f"layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    return _RESNETS[blocks, "layer1.0.conv3.weight" in body]  # type: ignore[index]


def _pyramid(fpn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names of the pyramid's tensors. With four levels, the first one is P2."""
    count = len([key for key in fpn if re.fullmatch(r"inner_blocks\.\d+\.0\.weight", key)])
    own: dict[str, Tensor] = {}
    for i in range(count):
        level = i - (count - 3)
        lateral, output = ("fine", "fine_output")
        if level >= 0:
            lateral, output = f"lateral.{level}", f"output.{level}"
        for kind in ("weight", "bias"):
            own[f"{lateral}.{kind}"] = fpn[f"inner_blocks.{i}.0.{kind}"]
            own[f"{output}.{kind}"] = fpn[f"layer_blocks.{i}.0.{kind}"]
    channels = len(own["output.0.weight"])
    for key, value in _below(fpn, "extra_blocks.").items():
        if fpn["extra_blocks.p6.weight"].shape[1] == channels:  # from P5, as ours, not from C5
            own[key] = value
    return own


def _folded(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``parts`` without batch norms: ``<i>.1`` becomes a part of the convolution ``<i>.0``."""
    own = {k: v for k, v in parts.items() if not re.search(r"\d\.1\.\w+$", k)}
    for key in parts:
        if key.endswith(".1.running_var"):
            block = key.removesuffix(".1.running_var")
            norm = {k: v.double() for k, v in _below(parts, f"{block}.1.").items()}
            factor = norm["weight"] / (norm["running_var"] + _EPS).sqrt()
            weight = parts[f"{block}.0.weight"]
            own[f"{block}.0.weight"] = (weight * factor[:, None, None, None]).to(weight)
            own[f"{block}.0.bias"] = (norm["bias"] - norm["running_mean"] * factor).to(weight)
    return own


def _classes(
    own: dict[str, Tensor], layer: str, background: bool
) -> tuple[int, list[dict[str, Any]] | None]:
    """Leave only the rows of classes in a layer. Returns their number and the categories."""
    names = FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    count = len(own[f"{layer}weight"])
    if count == len(names):
        kept = [i for i, name in enumerate(names) if name not in _NO_CLASS]
        categories: Any = [{"id": i, "name": names[i]} for i in kept]
    else:
        kept, categories = list(range(int(background), count)), None
    for kind in ("weight", "bias"):
        own[f"{layer}{kind}"] = own[f"{layer}{kind}"][kept].clone()
    return len(kept), categories
