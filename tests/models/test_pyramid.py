"""The pyramids, compared with their definitions, and the levels that a backbone lacks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autotimm.models.pyramid import FPN, STRIDES, SimplePyramid

CANVAS = (64, 96)


def maps(strides: tuple[int, ...], channels: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(2, c, CANVAS[0] // s, CANVAS[1] // s, requires_grad=True)
        for s, c in zip(strides, channels, strict=True)
    ]


def assert_shapes(levels: list[Tensor], channels: int) -> None:
    # A convolution of stride 2 rounds up if the side is odd.
    grids = [tuple(-(-side // stride) for side in CANVAS) for stride in STRIDES]
    assert [tuple(level.shape) for level in levels] == [(2, channels, *grid) for grid in grids]


def test_fpn_adds_lateral_and_top_down_paths() -> None:
    fpn = FPN([4, 6, 8], 16)
    c3, c4, c5 = maps((8, 16, 32), (4, 6, 8))
    levels = fpn([c3, c4, c5])
    assert_shapes(levels, 16)
    merged = [conv(c) for conv, c in zip(fpn.lateral, (c3, c4, c5), strict=True)]
    twice = nn.Upsample(scale_factor=2)
    merged[1] = merged[1] + twice(merged[2])
    merged[0] = merged[0] + twice(merged[1])
    expected = [conv(m) for conv, m in zip(fpn.output, merged, strict=True)]
    expected.append(fpn.p6(expected[2]))
    expected.append(fpn.p7(F.relu(expected[3])))
    for level, other in zip(levels, expected, strict=True):
        torch.testing.assert_close(level, other)


@pytest.mark.parametrize("strides", [(8, 16), (16, 32)])
def test_fpn_makes_the_level_that_a_backbone_lacks(strides: tuple[int, ...]) -> None:
    fpn = FPN([4, 6], 16, strides)
    sources = maps(strides, (4, 6))
    levels = fpn(sources)
    assert_shapes(levels, 16)
    missing = levels[0 if 8 not in strides else 2]
    missing.square().sum().backward()
    for source in sources:  # the missing level depends on the coarser map or on both
        assert source.grad is not None or source is sources[0]
    torch.stack([level.sum() for level in fpn(sources)]).sum().backward()
    assert all(p.grad is not None for p in fpn.parameters())


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_simple_pyramid_from_one_map(stride: int) -> None:
    pyramid = SimplePyramid(32, 16, stride)
    (source,) = maps((stride,), (32,))
    levels = pyramid([source])
    assert_shapes(levels, 16)
    for level in levels[:3]:  # their last layer is a LayerNorm over channels
        assert torch.allclose(level.mean(1), torch.zeros(()), atol=1e-5)
        assert torch.allclose(level.var(1, unbiased=False), torch.ones(()), atol=1e-2)
    torch.stack([level.square().sum() for level in levels]).sum().backward()
    assert all(p.grad is not None for p in pyramid.parameters())
    # Coarser levels are pooled, and finer ones have one transposed convolution per doubling.
    kinds = [[type(layer) for layer in scale] for scale in pyramid.scales]
    for target, kind in zip((8, 16, 32), kinds, strict=True):
        assert (nn.MaxPool2d in kind) == (target > stride)
        assert sum(k is nn.ConvTranspose2d for k in kind) == max(
            (stride // target).bit_length() - 1, 0
        )


def test_a_coarse_level_of_the_simple_pyramid_is_the_pooled_map() -> None:
    pyramid = SimplePyramid(32, 16, 16)
    (source,) = maps((16,), (32,))
    p4, p5 = pyramid([source])[1:3]
    pooled = F.max_pool2d(source, 2)

    def after(x: Tensor, layers: nn.Module) -> Tensor:
        for layer in layers:  # type: ignore[attr-defined]
            x = layer(x)
        return x

    torch.testing.assert_close(p4, after(source, pyramid.scales[1]))
    torch.testing.assert_close(p5, after(pooled, pyramid.scales[2][1:]))


def test_half_precision_gradients_of_maps_one_pixel_wide_are_those_of_float32() -> None:
    """On canvases of 64 pixels, P6 is one pixel. oneDNN then leaves parts of the gradient
    uninitialised, which shows once the memory has held other numbers, as in a run."""
    fpn = FPN([4, 6, 8], 16)
    given = [torch.randn(2, c, 64 // s, 64 // s) for s, c in ((8, 4), (16, 6), (32, 8))]

    def gradient(dtype: torch.dtype) -> Tensor:
        fpn.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            fpn(given)[-1].float().square().sum().backward()
        assert fpn.p7.weight.grad is not None
        return fpn.p7.weight.grad

    expected = gradient(torch.float32)
    for _ in range(20):
        for size in (9 * 16 * 16 // 2, 9 * 16 * 16):
            torch.full((size,), float("nan"))  # freed at once
        found = gradient(torch.bfloat16)
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * float(expected.max()))
