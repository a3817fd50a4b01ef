"""Normalised images against torchvision's, for every pixel value and memory layout."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from autotimm.data.normalize import Normalize

MEAN, STD = [0.4, 0.5, 0.7], [0.2, 0.25, 0.3]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_every_value_is_torchvisions(layout: torch.memory_format) -> None:
    image = torch.arange(256 * 3 * 4).view(2, 3, 64, 8).to(torch.uint8).to(memory_format=layout)
    kept = image.clone()
    found = Normalize(MEAN, STD)(image)
    truth = tv.normalize(image.float() / 255, MEAN, STD)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.contiguous(), truth, atol=1e-6, rtol=1e-6)
    assert len(found[:, 0].unique()) == 256
    assert torch.equal(image, kept)


def test_a_cpu_looks_up_what_another_device_computes() -> None:
    image = torch.randint(0, 256, (3, 3, 31, 17), dtype=torch.uint8)
    normalize = Normalize(MEAN, STD)
    assert torch.equal(normalize(image), normalize._compute(image))
    assert (
        normalize(torch.empty(2, 3, 8, 8, dtype=torch.uint8, device="meta")).device.type == "meta"
    )
