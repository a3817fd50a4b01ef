"""The FCOS head (Tian et al. 2019): class logits, box distances and centerness per location.

Invariants: all levels share the towers; each level has a learnt scale for its distances; distances
are in units of the level's stride and never negative; the regression tower computes centerness.
Outputs of all levels are concatenated along L, finest level first, rows before columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autotimm.models.pyramid import STRIDES


class HeadOutputs(NamedTuple):
    """The head's predictions at every location, in the precision of the computation."""

    classes: Tensor  # [B, L, K] logits
    distances: Tensor  # [B, L, 4] left, top, right, bottom in strides, >= 0
    centerness: Tensor  # [B, L] logits


class Locations(NamedTuple):
    """The locations of all levels, the same for every image of a canvas size."""

    points: Tensor  # [L, 2] x, y in canvas pixels
    strides: Tensor  # [L]
    ranges: Tensor  # [L, 2] a location regresses objects whose largest distance is in (low, high]


REGRESS_RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, math.inf))


def level_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Height and width of P3 to P7 on a canvas whose sides are multiples of 32."""
    shapes = [(height // 8, width // 8), (height // 16, width // 16), (height // 32, width // 32)]
    for _ in range(2):  # a 3x3 convolution of stride 2 with padding 1 rounds up
        h, w = shapes[-1]
        shapes.append(((h + 1) // 2, (w + 1) // 2))
    return shapes


def locations(
    shapes: Sequence[tuple[int, int]], device: torch.device, half_stride: bool = True
) -> Locations:
    """The centre of every cell of every level: ``stride // 2 + k * stride``, as in FCOS.

    torchvision omits the half stride and so predicts boxes from the cells' corners
    (pytorch/vision#7473). ``half_stride=False`` gives torchvision's locations. Where P6 and P7 do
    not divide the canvas, these lie ``side // cells`` pixels apart, which is less than a stride.
    """
    height, width = (8 * side for side in shapes[0])
    points, strides, ranges = [], [], []
    for (h, w), stride, extent in zip(shapes, STRIDES, REGRESS_RANGES, strict=True):
        shift = stride // 2 if half_stride else 0
        down, right = (stride, stride) if half_stride else (height // h, width // w)
        y = torch.arange(h, device=device, dtype=torch.float32) * down + shift
        x = torch.arange(w, device=device, dtype=torch.float32) * right + shift
        points.append(torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1).view(-1, 2))
        strides.append(torch.full((h * w,), float(stride), device=device))
        ranges.append(torch.stack([torch.full((h * w,), end, device=device) for end in extent], -1))
    return Locations(torch.cat(points), torch.cat(strides), torch.cat(ranges))


def decode_boxes(distances: Tensor, where: Locations) -> Tensor:
    """Convert distances [..., L, 4] in strides to boxes [..., L, 4] in pixels, in float32."""
    pixels = distances.float() * where.strides[:, None]
    return torch.cat([where.points - pixels[..., :2], where.points + pixels[..., 2:]], -1)


class FCOSHead(nn.Module):
    """Two towers of 3x3 convolutions with GroupNorm, shared by all levels.

    Args:
        channels: of the pyramid and of the towers.
        num_classes: K.
        num_convs: the number of convolutions per tower.
        prior: the class probability that the untrained head predicts everywhere. A low one keeps
            the many background locations from dominating the first steps (Lin et al. 2017).
        tower_bias: whether the convolutions of the towers have biases, as in torchvision.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        num_convs: int = 4,
        prior: float = 0.01,
        tower_bias: bool = False,
    ) -> None:
        super().__init__()
        self.class_tower = _tower(channels, num_convs, tower_bias)
        self.box_tower = _tower(channels, num_convs, tower_bias)
        self.classes = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.distances = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(STRIDES)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert self.classes.bias is not None
        nn.init.constant_(self.classes.bias, -math.log((1 - prior) / prior))
        # Half of 8 strides, at which the ranges of P3 to P6 end. With a bias of zero, the ReLU
        # would cut off half of the distances at the start, and they would get no gradient.
        assert self.distances.bias is not None
        nn.init.constant_(self.distances.bias, 4.0)

    def forward(self, levels: Sequence[Tensor]) -> HeadOutputs:
        """Compute the outputs at all locations from P3 to P7, each [B, C, h, w]."""
        outputs = [
            self._level(level, scale) for level, scale in zip(levels, self.scales, strict=True)
        ]
        return HeadOutputs(*(torch.cat(parts, 1) for parts in zip(*outputs, strict=True)))

    def _level(self, level: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        box_features = self.box_tower(level)
        classes = self.classes(self.class_tower(level))
        distances = F.relu(scale * self.distances(box_features))
        centerness = self.centerness(box_features)
        return (
            classes.flatten(2).transpose(1, 2),
            distances.flatten(2).transpose(1, 2),
            centerness.flatten(1),
        )


def _groups(channels: int) -> int:
    """The number of groups of a GroupNorm: 32 for 256 channels, as in FCOS.

    Groups of narrower towers keep 8 channels, so that the statistics of P7, which may have a single
    cell, still average several values.
    """
    return max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 8))


def _tower(channels: int, num_convs: int, bias: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers += [
            nn.Conv2d(channels, channels, 3, padding=1, bias=bias),
            nn.GroupNorm(_groups(channels), channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
