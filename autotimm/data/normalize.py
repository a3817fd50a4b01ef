"""uint8 images -> normalised float32 ones, once the batch is on its device.

They cross from worker to device as uint8, a quarter of the bytes. On a CPU, where the arithmetic
would pass three times over fresh memory, a value is looked up instead: there are only 256 of them
a channel. Both ways give the same numbers to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from autotimm.images import buffers


class Normalize:
    """Takes the mean of each channel off and divides by its deviation, where 1 is white.

    Args:
        mean: of R, G and B.
        std: likewise.

    Attributes:
        of: both.
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
        """Normalises images [B, 3, H, W] uint8; returns float32, channels last as they are."""
        if image.device.type != "cpu":
            return self._compute(image)
        pixels = image.permute(0, 2, 3, 1).contiguous().numpy()
        count, height, width, _ = pixels.shape
        out = buffers.empty((count * height, width, 3), np.float32)
        cv2.LUT(pixels.reshape(out.shape), self._table, dst=out)
        return torch.from_numpy(out).view(count, height, width, 3).permute(0, 3, 1, 2)

    def _compute(self, image: Tensor) -> Tensor:
        if image.device not in self._terms:
            # Copied once: a small copy to a GPU at every step would wait for it every time.
            factor, shift = self._terms[torch.device("cpu")]
            self._terms[image.device] = factor.to(image.device), shift.to(image.device)
        factor, shift = self._terms[image.device]
        return image.float().mul_(factor).sub_(shift)
