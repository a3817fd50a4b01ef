"""Any timm model with feature maps, as one module that returns the maps a pyramid starts from.

Maps are [B, C, h, w] even if the model computes them channels last, as Swin does. The sides of a
canvas may be any multiples of 32. Parameters that no map depends on are frozen, because DDP waits
for a gradient of every parameter that requires one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import safetensors
import timm
import torch
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autotimm.files.checksums import DamagedError, check
from autotimm.models.features import Features, features, first_stages
from autotimm.structures import InputError, Preprocessing

Norm = Literal["batch", "frozen", "sync"]


class Backbone(nn.Module):
    """A timm model reduced to its feature maps at strides 8, 16 and 32, and optionally 4.

    Args:
        name: a timm model name, with or without a tag (``resnet50.a1_in1k``).
        pretrained: True downloads timm's weights, a path reads them from a file (``.safetensors``
            or a weights-only ``.pth``), False starts from random weights.
        norm: how batch norms train. With ``batch``, each rank uses the statistics of its own
            images. ``frozen`` keeps the statistics and the affine parameters of the initial
            weights. ``sync`` uses the images of all ranks once :meth:`synchronise` was called.
        frozen_stages: the number of stages from the stem on that do not train, statistics of their
            norms included; the stem counts as one.
        fine: whether to return the map at stride 4 as well, if the model has it.

    Attributes:
        strides: of the maps that the model has, finest first.
        channels: of each map.
        plain: whether all layers work at one stride, as in a plain transformer.
        preprocessing: that of the pretrained weights; ImageNet's and bilinear for random ones.

    Raises:
        InputError: the name is unknown, the model cannot be a backbone (the message suggests
            others), the weights cannot be loaded, or ``norm`` needs batch norms and the model has
            none.
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
        spec = features(name, fine)
        self.strides, self.channels, self.plain = (
            spec.strides,
            list(spec.channels),
            spec.plain,
        )
        self.multiple, self.channels_last = spec.multiple, spec.channels_last
        self.model = _create(name, pretrained, spec)
        self.preprocessing = (
            _preprocessing(self.model.pretrained_cfg) if pretrained else Preprocessing()
        )
        for parameter_name, parameter in self.model.named_parameters():
            if parameter_name in spec.unused:
                parameter.requires_grad_(False)
        self.norm = norm
        self._check_norm(name)
        # Modules that stay in evaluation mode. By name: synchronise() replaces the norms.
        self._kept: list[str] = []
        if norm == "frozen":
            norms = self._batch_norms()
            self._kept += [key for key, m in self.model.named_modules() if m in norms]
        if frozen_stages:
            names = [key for key, _ in self.model.named_parameters()]
            frozen = first_stages(name, names, frozen_stages)
            self._kept += [k for k, m in self.model.named_modules() if _consists_of(k, m, frozen)]
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
        """Whether all running means are zero: the weights were never trained on images."""
        return not any(
            norm.running_mean.any() for norm in self._batch_norms() if norm.running_mean is not None
        )

    def synchronise(self) -> None:
        """Make batch norms compute their statistics over all ranks. Weights keep their keys."""
        self.model = convert_sync_batchnorm(self.model)

    def train(self, mode: bool = True) -> Backbone:
        """As ``nn.Module.train``, but frozen modules stay in evaluation mode."""
        super().train(mode)
        for key in self._kept:
            self.model.get_submodule(key).eval()
        return self

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The size to which :meth:`forward` pads a canvas.

        Models such as MaxViT divide an image into windows and need a whole number of them.
        """
        return height + -height % self.multiple, width + -width % self.multiple

    def forward(self, image: Tensor) -> list[Tensor]:
        """Convert ``image`` [B, 3, H, W], H and W multiples of 32, to maps [B, C, H/s, W/s]."""
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


def _consists_of(name: str, module: nn.Module, parameters: set[str]) -> bool:
    """Whether the module ``name`` has parameters, all of which are in ``parameters``."""
    own = [f"{name}.{key}" for key, _ in module.named_parameters()]
    return bool(own) and parameters.issuperset(own)


def _preprocessing(config: dict[str, Any]) -> Preprocessing:
    mean, std = config["mean"], config["std"]
    return Preprocessing(tuple(mean), tuple(std), config["interpolation"])


def _create(name: str, pretrained: bool | str | Path, spec: Features) -> Any:
    if isinstance(pretrained, bool):
        return _own_weights(name, spec) if pretrained else _model(name, spec)
    path = Path(pretrained)
    if not path.is_file():
        raise InputError(f"pretrained={str(path)!r} is not a file")
    try:
        with path.open("rb") as file:
            check(file)  # torch does not compare a zip's CRCs
    except DamagedError as error:
        raise InputError(f"pretrained={str(path)!r} is damaged ({error}): give another") from error
    overlay = {"file": str(path), "hf_hub_id": None, "url": "", "custom_load": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        empty = dict(_model(name, spec).named_parameters())
        torch.manual_seed(0)
        try:
            model = _model(name, spec, pretrained=True, pretrained_cfg_overlay=overlay)
        # Each file format raises different exceptions.
        except Exception as error:
            _refuse_whole_model(path)
            raise InputError(
                f"pretrained={str(path)!r} cannot be read as weights of {name} "
                f"({type(error).__name__}: {_first_sentence(error)})"
            ) from error
    # timm silently keeps the initial values of parameters that the file lacks.
    missing = [
        key
        for key, weight in model.named_parameters()
        if weight.ndim > 1 and weight.min() < weight.max() and torch.equal(weight, empty[key])
    ]
    if missing:
        _refuse_whole_model(path)
        raise InputError(
            f"pretrained={str(path)!r} does not hold weights of {name}: it lacks {missing[0]}"
            + (f" and {len(missing) - 1} more weights" if len(missing) > 1 else "")
        )
    return model


def _refuse_whole_model(path: Path) -> None:
    """Raise InputError for a checkpoint of a detector, which timm cannot tell from other files."""
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                names = list(file.keys())
        else:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            names = list(content.get("state_dict", content))
    # The caller reports what it could not read; this only looks for a better reason.
    except Exception:
        return
    if any(str(name).startswith(("network.", "backbone.body.")) for name in names):
        raise InputError(
            f"pretrained={str(path)!r} holds a whole model, and pretrained takes weights of the "
            f"backbone alone: give --weights {path} (fit(weights=...) in Python)"
        )


def _own_weights(name: str, spec: Features) -> Any:
    from autotimm.models import hub  # here, because its client takes a while to import

    try:
        with hub.without_network() as lacking, hub.warned_once(name):
            return _model(name, spec, pretrained=True)
    # Each transport raises different exceptions.
    except Exception as error:
        config = timm.get_pretrained_cfg(name)
        where = getattr(config, "hf_hub_id", None) or getattr(config, "url", None)
        elsewhere = (
            f"--model.pretrained FILE takes a file, such as the model.safetensors of {where} "
            "fetched on a machine that has a network (docs/adding-a-backbone.md), or "
            if where
            else ""
        )
        raise InputError(
            f"could not load timm's weights of {name}: {f'{lacking}; ' if lacking else ''}"
            f"{elsewhere}--model.pretrained false starts from random weights "
            f"(pretrained= in Python; {type(error).__name__}: {_first_sentence(error)})"
        ) from error


def _model(name: str, spec: Features, pretrained: bool = False, **options: Any) -> Any:
    return timm.create_model(name, pretrained=pretrained, **spec.options, **options)


def _first_sentence(error: BaseException) -> str:
    text = str(error).partition(" No automatic unsafe")[0]  # timm then advises an unsafe load
    return next(iter(text.splitlines()), "").partition(". ")[0][:200]
