"""Normalises uint8 images to float32 on the device.

Batches travel from worker to device as uint8, a quarter of the bytes. On a CPU the arithmetic would
pass over the memory three times, so values come from a table of 256 entries a channel instead. Both
ways give the same numbers, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from autotimm.images import buffers


class Normalize:
    """Subtracts the mean of each channel and divides by its standard deviation; 1 is white.

    Args:
        mean: of R, G and B.
        std: of R, G and B.

    Attributes:
        of: mean and std.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.of = tuple(mean), tuple(std)
        scale = torch.tensor(std).view(3, 1, 1)
        self._terms = {
            torch.device("cpu"): (1 / (255 * scale), torch.tensor(mean)[:, None, None] / scale)
        }
        every = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
        self._table = self._compute(every).permute(2, 1, 0).contiguous().numpy()  # [256, 1, 3]

    def __call__(self, image: Tensor) -> Tensor:
        """Normalises images [B, 3, H, W] uint8, channels last; returns float32 of that layout."""
        if image.device.type != "cpu":
            return self._compute(image)
        pixels = image.permute(0, 2, 3, 1).contiguous().numpy()
        count, height, width, _ = pixels.shape
        out = buffers.empty((count * height, width, 3), np.float32)
        cv2.LUT(pixels.reshape(out.shape), self._table, dst=out)
        return torch.from_numpy(out).view(count, height, width, 3).permute(0, 3, 1, 2)

    def _compute(self, image: Tensor) -> Tensor:
        if image.device not in self._terms:
            # Copied once, because a small copy to the GPU at every step would wait for the GPU.
            factor, shift = self._terms[torch.device("cpu")]
            self._terms[image.device] = factor.to(image.device), shift.to(image.device)
        factor, shift = self._terms[image.device]
        return image.float().mul_(factor).sub_(shift)
