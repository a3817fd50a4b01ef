"""Feature pyramid P3 to P7 over a backbone's C3 to C5 (Lin et al. 2017, P6 and P7 as in FCOS)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (8, 16, 32, 64, 128)


class FPN(nn.Module):
    """Laterals, a top-down path, and two coarser levels made from P5.

    P6 and P7 come from P5 rather than C5, as FCOS has it, so that they share its width.

    Args:
        in_channels: of C3, C4 and C5.
        channels: of every level of the pyramid.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels
        )
        self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """C3 to C5 at strides 8, 16, 32 to P3 to P7 at strides 8 to 128, each [B, C, h, w]."""
        laterals = [conv(c) for conv, c in zip(self.lateral, maps, strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            size = laterals[i - 1].shape[-2:]
            laterals[i - 1] = laterals[i - 1] + F.interpolate(
                laterals[i], size=size, mode="nearest"
            )
        levels = [conv(lateral) for conv, lateral in zip(self.output, laterals, strict=True)]
        levels.append(self.p6(levels[-1]))
        levels.append(self.p7(F.relu(levels[-1])))
        return levels
