"""The feature pyramid P3 to P7 for the heads, from any maps of a backbone.

Both pyramids compute five levels [B, C, h, w] at strides 8 to 128, all with the same C, from the
backbone's maps. If these begin at stride 4, P2 precedes them, which only the mask head uses. As in
FCOS, P6 and P7 are computed from P5 rather than C5.
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
    """Lateral connections, a top-down path, and coarser levels from the last one (Lin et al. 2017).

    A level that is finer than the backbone's maps is the upsampled level above it, and one that is
    coarser is a convolution of stride 2. P2 has no 3x3 output convolution: with four times the
    cells of P3, it would cost more than all others, and the mask head convolves the pooled RoIs.

    Args:
        in_channels: of each map.
        channels: of every level of the pyramid.
        strides: of the maps, finest first: optionally 4, then two or three of 8, 16 and 32.
        fine_output: whether P2 has an output convolution all the same, as in torchvision.

    Attributes:
        finest: n of the first level P<n>: 2 or 3.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        strides: Sequence[int] = STRIDES[:3],
        fine_output: bool = False,
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
        self.fine_output = _same(channels) if self.fine is not None and fine_output else None
        _initialise(self)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Compute P3 to P7, or P2 to P7, from the backbone's maps."""
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
            finest = self.fine(maps[0]) + _twice(merged[0])
            levels.insert(0, finest if self.fine_output is None else self.fine_output(finest))
        return _coarser(levels, self.p6, self.p7)


class SimplePyramid(nn.Module):
    """Every level from the last map of a plain transformer, whose layers all have one stride.

    This is the simple feature pyramid of ViTDet (Li et al. 2022, "Exploring Plain Vision
    Transformer Backbones for Object Detection"). Transposed convolutions enlarge the map and max
    pooling reduces it, and each scale has a 1x1 and a 3x3 convolution with LayerNorm. It needs no
    top-down path, because attention has already spread information over the whole image.

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
        """Compute P3 to P7 from a list with the one map."""
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
    """Apply the convolution ``conv`` of stride 2 to ``level``.

    If a map is one pixel wide, oneDNN leaves parts of the weights' gradient uninitialised in
    bfloat16. Another column of zeros avoids this, and equals the padding, so the result is the
    same.
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
