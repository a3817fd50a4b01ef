"""The head's details: initial values, the tower of each output, the order of the outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autotimm.models.fcos import FCOSHead, HeadOutputs, decode_boxes, level_shapes, locations

CPU = torch.device("cpu")


def pyramid(channels: int = 32, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, h, w, generator=g) for h, w in level_shapes(64, 96)]


def outputs_of(head: FCOSHead, levels: list[torch.Tensor]) -> HeadOutputs:
    with torch.no_grad():
        return head(levels)


def test_it_starts_from_the_prior() -> None:
    torch.manual_seed(0)
    head = FCOSHead(256, 80)
    for layer in (head.classes, head.distances, head.centerness):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
    for tower in (head.class_tower, head.box_tower):
        convs = [m for m in tower if isinstance(m, nn.Conv2d)]
        assert len(convs) == len([m for m in tower if isinstance(m, nn.GroupNorm)]) == 4
        assert all(c.weight.std().item() == pytest.approx(0.01, rel=0.1) for c in convs)
    with torch.no_grad():
        head.classes.weight.zero_()
    found = outputs_of(head, pyramid(256)).classes.sigmoid()
    torch.testing.assert_close(found, torch.full_like(found, 0.01))


def test_no_distance_starts_behind_the_relu() -> None:
    torch.manual_seed(0)
    assert (outputs_of(FCOSHead(256, 3), pyramid(256)).distances > 0).all()


@pytest.mark.parametrize(("bias", "scale"), [(-1.0, 1.0), (1.0, -1.0)])
def test_the_relu_follows_the_scale_of_the_distances(bias: float, scale: float) -> None:
    head = FCOSHead(32, 3, 1)
    with torch.no_grad():
        head.distances.weight.zero_()
        head.distances.bias.fill_(bias)
        head.scales.fill_(scale)
    assert (outputs_of(head, pyramid()).distances == 0).all()


def test_centerness_sits_on_the_regression_tower() -> None:
    torch.manual_seed(0)
    head = FCOSHead(32, 3, 2)
    before = outputs_of(head, pyramid())
    with torch.no_grad():
        head.class_tower[0].weight.mul_(-1)
    after = outputs_of(head, pyramid())
    assert not torch.equal(before.classes, after.classes)
    assert torch.equal(before.centerness, after.centerness)
    assert torch.equal(before.distances, after.distances)
    with torch.no_grad():
        head.box_tower[0].weight.mul_(-1)
    last = outputs_of(head, pyramid())
    assert torch.equal(after.classes, last.classes)
    assert not torch.equal(after.centerness, last.centerness)


def test_outputs_lie_where_the_locations_do() -> None:
    """The outputs for maps whose values are the coordinates of their cells."""
    shapes = level_shapes(64, 96)
    where = locations(shapes, CPU)
    head = FCOSHead(2, 2, 0)
    with torch.no_grad():
        for layer in (head.classes, head.distances, head.centerness):
            layer.weight.zero_()
            layer.bias.zero_()
        head.classes.weight[:, :, 1, 1] = torch.eye(2)
        head.distances.weight[1, 0, 1, 1] = head.centerness.weight[0, 1, 1, 1] = 1.0
    levels, start = [], 0
    for h, w in shapes:
        own = where.points[start : start + h * w]
        levels.append(own.view(1, h, w, 2).permute(0, 3, 1, 2))
        start += h * w
    found = outputs_of(head, levels)
    assert torch.equal(found.classes[0], where.points)
    assert torch.equal(found.distances[0, :, 1], where.points[:, 0])
    assert torch.equal(found.centerness[0], where.points[:, 1])


def test_distances_are_in_strides_and_decoded_in_float32() -> None:
    where = locations(level_shapes(1024, 1024), CPU)
    distances = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, len(where.points), 4)
    boxes = decode_boxes(distances.half(), where)
    assert boxes.dtype == torch.float32
    last = (where.strides == 32).nonzero()[-1].item()  # at 1008, 1008
    assert boxes[0, last].tolist() == [1008 - 32, 1008 - 64, 1008 + 96, 1008 + 128]
    wild = decode_boxes(torch.full((1, len(where.points), 4), 6e4).half(), where)
    assert torch.isfinite(wild).all()
