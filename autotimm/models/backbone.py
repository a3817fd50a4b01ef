"""Any timm model with feature maps at strides 8, 16 and 32, as one module that yields C3, C4, C5.

Maps come out as NCHW whatever the model computes in (Swin and its kin work in NHWC).
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from autotimm.structures import InputError

STRIDES = (8, 16, 32)


class Backbone(nn.Module):
    """A timm model cut down to its maps at strides 8, 16 and 32.

    Args:
        name: a timm model name, with a tag where wanted (``resnet50.a1_in1k``).
        pretrained: True downloads timm's weights, a path reads them from a file (``.safetensors``
            or a weights-only ``.pth``), False starts from random ones.

    Attributes:
        channels: of C3, C4 and C5.

    Raises:
        InputError: an unknown name, a model without such maps, or weights that cannot be had.
    """

    channels: list[int]

    def __init__(self, name: str, pretrained: bool | str | Path = True) -> None:
        super().__init__()
        indices = _indices_of_strides(name)
        self.model = _create(name, pretrained, out_indices=indices)
        info: Any = self.model.feature_info
        self.channels = list(info.channels())
        self._freeze_unused(name, indices)
        self.channels_last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")

    def _freeze_unused(self, name: str, indices: tuple[int, ...]) -> None:
        """Take out of training what the three maps do not depend on (HRNet's finest branch, say):
        DDP waits for a gradient of every parameter that asks for one."""
        with torch.device("meta"):
            twin = _create(name, False, indices).train()
            try:
                maps = twin(torch.empty(2, 3, 256, 320))
                torch.stack([m.sum() for m in maps]).sum().backward()
            except (RuntimeError, AssertionError, ValueError) as error:
                raise InputError(
                    f"backbone={name!r} does not take images of any size ({_first_line(error)}): "
                    f"take a convolutional one or a Swin"
                ) from error
        for parameter, other in zip(self.model.parameters(), twin.parameters(), strict=True):
            if other.grad is None:
                parameter.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """``image`` [B, 3, H, W], H and W multiples of 32, to C3 to C5 [B, C, H/s, W/s]."""
        maps = self.model(image)
        return [m.permute(0, 3, 1, 2).contiguous() for m in maps] if self.channels_last else maps


def _indices_of_strides(name: str) -> tuple[int, ...]:
    """Which of the model's maps lie at strides 8, 16 and 32, found without allocating weights."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=5)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise InputError(f"backbone={name!r} is not a timm model (see timm.list_models()){hint}")
    try:
        with torch.device("meta"):
            info: Any = timm.create_model(name, features_only=True).feature_info
        strides = info.reduction()
    except (RuntimeError, AttributeError, NotImplementedError, TypeError) as error:
        raise InputError(
            f"backbone={name!r} gives no feature maps ({_first_line(error)})"
        ) from error
    if not set(STRIDES) <= set(strides):
        raise InputError(
            f"backbone={name!r} has feature maps at strides {sorted(set(strides))}, but the "
            f"feature pyramid needs 8, 16 and 32: take a hierarchical model such as resnet50, "
            f"convnext_tiny or swin_tiny_patch4_window7_224"
        )
    # Where several maps share a stride the last one is the deepest.
    return tuple(len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES)


def _create(name: str, pretrained: bool | str | Path, out_indices: tuple[int, ...]) -> nn.Module:
    options: dict = {"features_only": True, "out_indices": out_indices}
    if "img_size" in _creation_arguments(name):
        # Windowed attention with a fixed grid: let it take the canvas it is given.
        options["strict_img_size"] = False
    if isinstance(pretrained, bool):
        source = f"timm's weights of {name}"
    else:
        path = Path(pretrained)
        if not path.is_file():
            raise InputError(f"pretrained={str(path)!r} is not a file")
        options["pretrained_cfg_overlay"] = {"file": str(path), "hf_hub_id": None, "url": ""}
        source = str(path)
    try:
        return timm.create_model(name, pretrained=bool(pretrained), **options)
    # Each transport and each file format fails with an exception class of its own.
    except Exception as error:
        if not pretrained:
            raise
        raise InputError(
            f"could not load {source} ({type(error).__name__}: {_first_line(error)}); "
            f"pretrained=False (--model.pretrained=false) starts from random weights, and "
            f"pretrained=PATH reads a weights file, of timm/{name} say"
        ) from error


def _creation_arguments(name: str) -> set[str]:
    """What timm's fixed-grid models with ``strict_img_size`` can be told (Swin and Swin v2)."""
    family = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    return {"img_size"} if family in {"swin_transformer", "swin_transformer_v2"} else set()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
