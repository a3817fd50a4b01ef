"""Any timm model with feature maps, as one module that yields those a pyramid starts from.

Maps come out as [B, C, h, w] whatever the model computes in (Swin and its kin work channels last),
for canvases of any size in multiples of 32. What the maps do not depend on takes no part in
training: DDP waits for a gradient of every parameter that asks for one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autotimm.models.features import Features, features, first_stages
from autotimm.structures import InputError, Preprocessing

Norm = Literal["batch", "frozen", "sync"]


class Backbone(nn.Module):
    """A timm model cut down to its maps at strides (4,) 8, 16 and 32, as far as it has them.

    Args:
        name: a timm model name, with a tag where wanted (``resnet50.a1_in1k``).
        pretrained: True downloads timm's weights, a path reads them from a file (``.safetensors``
            or a weights-only ``.pth``), False starts from random ones.
        norm: what batch norms do: ``batch`` learns, each rank by its own images; ``frozen`` keeps
            the statistics and the affine parameters of the weights that it starts from; ``sync``
            learns by the images of all ranks, once :meth:`synchronise` was called.
        frozen_stages: how many of the first stages stay as they are, statistics of norms included;
            the stem is one.
        fine: give the map at stride 4, too, where there is one.

    Attributes:
        strides: of the maps, finest first: of (4,) 8, 16 and 32 those that there are.
        channels: of each map.
        plain: whether all of the model works at one stride, as a plain transformer does.
        preprocessing: what the weights were trained with; ImageNet's and bilinear for random ones.

    Raises:
        InputError: an unknown name, a model that cannot be a backbone (others are named), weights
            that cannot be had, or a ``norm`` for a model that has no batch norm.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool | str | Path = True,
        norm: Norm = "batch",
        frozen_stages: int = 0,
        fine: bool = False,
    ) -> None:
        super().__init__()
        found = features(name, fine)
        self.strides, self.channels, self.plain = found.strides, list(found.channels), found.plain
        self.multiple, self.channels_last = found.multiple, found.channels_last
        self.model = _create(name, pretrained, found)
        self.preprocessing = (
            _preprocessing(self.model.pretrained_cfg) if pretrained else Preprocessing()
        )
        for parameter_name, parameter in self.model.named_parameters():
            if parameter_name in found.unused:
                parameter.requires_grad_(False)
        self.norm = norm
        self._check_norm(name)
        # Names, as synchronised norms are other modules.
        self._kept: list[str] = []
        if norm == "frozen":
            norms = self._batch_norms()
            self._kept += [key for key, m in self.model.named_modules() if m in norms]
        if frozen_stages:
            names = [key for key, _ in self.model.named_parameters()]
            frozen = first_stages(name, names, frozen_stages)
            self._kept += [k for k, m in self.model.named_modules() if _consists(k, m, frozen)]
            for key in frozen:
                self.model.get_parameter(key).requires_grad_(False)
        for key in self._kept:
            self.model.get_submodule(key).requires_grad_(False)
        self.train(self.training)

    def _check_norm(self, name: str) -> None:
        if self.norm not in get_args(Norm):
            raise InputError(f"backbone_norm={self.norm!r} is unknown: take batch, frozen or sync")
        if self.norm != "batch" and not self._batch_norms():
            raise InputError(
                f"backbone_norm={self.norm!r}: {name} has no batch norm: leave backbone_norm out "
                f"(freeze_backbone=True freezes all of it)"
            )

    def _batch_norms(self) -> list[_BatchNorm]:
        return [module for module in self.model.modules() if isinstance(module, _BatchNorm)]

    def norms_are_fresh(self) -> bool:
        """Whether the batch norms have seen no image, here or where the weights are from."""
        return not any(
            norm.running_mean.any() for norm in self._batch_norms() if norm.running_mean is not None
        )

    def synchronise(self) -> None:
        """Has batch norms take their statistics over all ranks. Keys of the weights stay."""
        self.model = convert_sync_batchnorm(self.model)

    def train(self, mode: bool = True) -> Backbone:
        """As ``nn.Module.train``, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for key in self._kept:
            self.model.get_submodule(key).eval()
        return self

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The size at which a canvas is worked on: attention in windows of a share of the image
        (MaxViT's) has to find whole ones."""
        return height + -height % self.multiple, width + -width % self.multiple

    def forward(self, image: Tensor) -> list[Tensor]:
        """``image`` [B, 3, H, W], H and W multiples of 32, to maps [B, C, H/s, W/s]."""
        height, width = image.shape[-2:]
        full_height, full_width = self.padded(height, width)
        below, right = full_height - height, full_width - width
        maps = self.model(F.pad(image, (0, right, 0, below)) if below or right else image)
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        if below or right:
            maps = [
                m[..., : height // stride, : width // stride]
                for m, stride in zip(maps, self.strides, strict=True)
            ]
        return list(maps)


def _consists(name: str, module: nn.Module, of: set[str]) -> bool:
    """Whether a module has parameters, and all of them are among those named."""
    own = [f"{name}.{key}" for key, _ in module.named_parameters()]
    return bool(own) and of.issuperset(own)


def _preprocessing(config: dict[str, Any]) -> Preprocessing:
    mean, std = config["mean"], config["std"]
    return Preprocessing(tuple(mean), tuple(std), config["interpolation"])


def _create(name: str, pretrained: bool | str | Path, found: Features) -> Any:
    if isinstance(pretrained, bool):
        return _own_weights(name, found) if pretrained else _model(name, found)
    path = Path(pretrained)
    if not path.is_file():
        raise InputError(f"pretrained={str(path)!r} is not a file")
    overlay = {"file": str(path), "hf_hub_id": None, "url": "", "custom_load": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        empty = dict(_model(name, found).named_parameters())
        torch.manual_seed(0)
        try:
            model = _model(name, found, pretrained=True, pretrained_cfg_overlay=overlay)
        # Each file format fails with exceptions of its own.
        except Exception as error:
            raise InputError(
                f"pretrained={str(path)!r} cannot be read as weights of {name} "
                f"({type(error).__name__}: {_first_sentence(error)})"
            ) from error
    # timm leaves what it does not find in a file as it was, and says nothing.
    missing = [
        key
        for key, weight in model.named_parameters()
        if weight.ndim > 1 and weight.min() < weight.max() and torch.equal(weight, empty[key])
    ]
    if missing:
        raise InputError(
            f"pretrained={str(path)!r} is not of {name}: it lacks {missing[0]}"
            + (f" and {len(missing) - 1} more weights" if len(missing) > 1 else "")
        )
    return model


def _own_weights(name: str, found: Features) -> Any:
    try:
        return _model(name, found, pretrained=True)
    # Each transport fails with an exception class of its own.
    except Exception as error:
        config = timm.get_pretrained_cfg(name)
        where = getattr(config, "hf_hub_id", None) or getattr(config, "url", None)
        elsewhere = (
            f"pretrained=PATH (--model.pretrained=PATH) reads a file, such as the "
            f"model.safetensors of {where} fetched on a machine that has a network, and "
            if where
            else ""
        )
        raise InputError(
            f"could not load timm's weights of {name} ({type(error).__name__}: "
            f"{_first_sentence(error)}); {elsewhere}pretrained=False starts from random weights"
        ) from error


def _model(name: str, found: Features, pretrained: bool = False, **options: Any) -> Any:
    return timm.create_model(name, pretrained=pretrained, **found.options, **options)


def _first_sentence(error: BaseException) -> str:
    text = str(error).partition(" No automatic unsafe")[0]  # timm goes on to advise just that
    return next(iter(text.splitlines()), "")[:200]
