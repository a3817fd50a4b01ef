"""RoIAlign as matrix products, compared with torchvision's, with gradients."""

from __future__ import annotations

import pytest
import torch
from batches import random_boxes
from torch import Tensor
from torchvision.ops import roi_align

from autotimm.models import bilinear, mask_head


def example() -> tuple[Tensor, Tensor, Tensor]:
    """A map [2, 5, 32, 40], boxes inside it, over its edge and far outside, and their images."""
    g = torch.Generator().manual_seed(0)
    boxes = torch.stack([random_boxes(12, 32, 40, g, smallest=0.2) for _ in range(2)])
    boxes[:, 3:8] += torch.randn(2, 5, 4, generator=g).abs() * torch.tensor([-6.0, -6.0, 6.0, 6.0])
    boxes[:, 8] = -1e4
    boxes[:, 9] = torch.tensor([0.0, 0.0, 40.0, 32.0])
    level = torch.randn(2, 5, 32, 40, generator=g, dtype=torch.float64)
    return level, boxes.flatten(0, 1).double(), torch.arange(2).repeat_interleave(12)


def test_equals_torchvision() -> None:
    level, boxes, image = example()
    weight = torch.randn(24, 5, 7, 7, generator=torch.Generator().manual_seed(1)).double()
    ours, theirs = level.clone().requires_grad_(), level.clone().requires_grad_()
    got = bilinear.roi_align(ours, boxes, image, 7)
    rows = torch.cat([image[:, None], boxes], 1)
    expected = roi_align(theirs, rows, 7, 1.0, 2, aligned=True)
    torch.testing.assert_close(got, expected)
    assert (expected[8] == 0).all()
    (got * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("aligned", [True, False])
def test_deterministic_runs_on_a_gpu_take_it(monkeypatch, aligned: bool) -> None:
    """The test needs no GPU: its tensors only claim to be on one."""
    g = torch.Generator().manual_seed(2)
    levels = [torch.randn(2, 4, 256 // s, 320 // s, generator=g) for s in (8, 16, 32)]
    boxes, image = random_boxes(18, 256, 320, g), torch.randint(0, 2, (18,), generator=g)
    boxes[0, 2:] = boxes[0, :2] + torch.tensor([0.5, 30.0])  # narrower than a cell
    expected = mask_head.pool(levels, boxes, image, 14, aligned=aligned)

    class OnGpu(Tensor):
        is_cuda = True

    def refuse(*_, **__):
        raise AssertionError("torchvision's")

    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    monkeypatch.setattr(mask_head, "roi_align", refuse)
    on_gpu = [level.as_subclass(OnGpu) for level in levels]
    got = mask_head.pool(on_gpu, boxes, image, 14, aligned=aligned)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_gradients_on_a_gpu_are_the_same_each_time() -> None:
    """They also fit into memory; torchvision's deterministic path stores every sample at once."""
    g = torch.Generator().manual_seed(3)
    levels = [torch.randn(8, 256, 640 // s, 640 // s, generator=g).cuda() for s in (8, 16, 32)]
    boxes, image = random_boxes(512, 640, 640, g).cuda(), torch.arange(512).cuda() // 64
    expected = mask_head.pool(levels, boxes, image, 14)
    torch.use_deterministic_algorithms(True)
    try:
        gradients = []
        for _ in range(2):
            leaves = [level.clone().requires_grad_() for level in levels]
            got = mask_head.pool(leaves, boxes, image, 14)
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
            got.square().sum().backward()
            gradients.append([leaf.grad for leaf in leaves])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
