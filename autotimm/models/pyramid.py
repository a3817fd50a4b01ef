"""The feature pyramid P3 to P7 that the heads work on, from whatever maps a backbone has.

Both pyramids take the backbone's maps and give five levels at strides 8 to 128, all [B, C, h, w]
of one width C; before them P2, for masks alone, where the maps begin at stride 4. P6 and P7 come
from P5 rather than C5, as FCOS has it, so that they share it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from autotimm.models.features import FINE

STRIDES = (8, 16, 32, 64, 128)


class FPN(nn.Module):
    """Laterals, a top-down path, and coarser levels made from the last one (Lin et al. 2017).

    A level finer than the backbone's maps gets what comes down from above, and one that is coarser
    a convolution of stride 2. P2 goes without its 3x3 convolution, which at four times P3's size
    would cost more than all others: the mask head has four, over what is cut out of it.

    Args:
        in_channels: of each map.
        channels: of every level of the pyramid.
        strides: of the maps, finest first: perhaps 4, and two or three of 8, 16 and 32.

    Attributes:
        finest: n of the first level P<n>: 2 or 3.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int, strides: Sequence[int] = STRIDES[:3]
    ) -> None:
        super().__init__()
        self.fine = nn.Conv2d(in_channels[0], channels, 1) if strides[0] == FINE else None
        self.finest = 3
        if self.fine is not None:
            in_channels, strides, self.finest = in_channels[1:], strides[1:], 2
        self.merged = [stride for stride in STRIDES if stride <= max(strides)]
        self.sources = list(strides)
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(_same(channels) for _ in self.merged)
        self.p5 = _half(channels) if max(strides) < 32 else None
        self.p6 = _half(channels)
        self.p7 = _half(channels)
        _initialise(self)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps to P3 to P7, or P2 to P7."""
        coarser = maps if self.fine is None else maps[1:]
        laterals = {
            stride: conv(c)
            for stride, conv, c in zip(self.sources, self.lateral, coarser, strict=True)
        }
        merged = [laterals[self.merged[-1]]]
        for stride in self.merged[-2::-1]:
            above = _twice(merged[0])
            merged.insert(0, laterals[stride] + above if stride in laterals else above)
        levels = [conv(level) for conv, level in zip(self.output, merged, strict=True)]
        if self.p5 is not None:
            levels.append(_halved(self.p5, levels[-1]))
        if self.fine is not None:
            levels.insert(0, self.fine(maps[0]) + _twice(merged[0]))
        return _coarser(levels, self.p6, self.p7)


class SimplePyramid(nn.Module):
    """Every level from the last map of a plain transformer, which has maps at one stride only.

    The simple feature pyramid of ViTDet (Li et al. 2022, "Exploring Plain Vision Transformer
    Backbones for Object Detection"): the map is enlarged by transposed convolutions or max-pooled,
    and each scale goes through a 1x1 and a 3x3 convolution with LayerNorm. No top-down path: the
    one map has seen the whole image.

    Args:
        in_channels: of the map.
        channels: of every level of the pyramid.
        stride: of the map: 8, 16 or 32.
    """

    finest = 3

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            _scale(in_channels, channels, stride, target) for target in STRIDES[:3]
        )
        self.p6 = _half(channels)
        self.p7 = _half(channels)
        _initialise(self)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The one map, in a list, to P3 to P7."""
        (last,) = maps
        return _coarser([scale(last) for scale in self.scales], self.p6, self.p7)


def _scale(in_channels: int, channels: int, stride: int, target: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = in_channels
    for step in range(int(math.log2(stride / target))):
        if step:
            layers += [LayerNorm2d(width), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
        width //= 2
    if target > stride:
        layers.append(nn.MaxPool2d(target // stride))
    layers += [nn.Conv2d(width, channels, 1, bias=False), LayerNorm2d(channels)]
    layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels)]
    return nn.Sequential(*layers)


def _coarser(levels: list[Tensor], p6: nn.Module, p7: nn.Module) -> list[Tensor]:
    levels.append(_halved(p6, levels[-1]))
    levels.append(_halved(p7, F.relu(levels[-1])))
    return levels


def _halved(conv: nn.Module, level: Tensor) -> Tensor:
    """``conv``, of stride 2, of ``level``.

    On a map one pixel wide oneDNN's bfloat16 leaves parts of the weights' gradient unwritten; with
    a column of zeros beside it, which is the padding anyway, the result is the same.
    """
    return conv(F.pad(level, (0, 1)) if level.shape[-1] == 1 else level)


def _twice(level: Tensor) -> Tensor:
    return F.interpolate(level, scale_factor=2.0, mode="nearest")


def _same(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1)


def _half(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1)


def _initialise(pyramid: nn.Module) -> None:
    for module in pyramid.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
