"""Assignment against torchvision's, and against FCOS's own rules written out for one location."""

from __future__ import annotations

import math

import pytest
import torch
from batches import random_boxes
from torch import nn
from torchvision.models.detection.fcos import FCOS

from autotimm.models import assign
from autotimm.models.fcos import REGRESS_RANGES, Locations, level_shapes, locations
from autotimm.models.pyramid import STRIDES

CPU = torch.device("cpu")


def torchvision_matches(where: Locations, cells: list[int], boxes, labels) -> torch.Tensor:
    """What torchvision's FCOS assigns, taken from inside its compute_loss."""

    class Spy(nn.Module):
        def compute_loss(self, targets, head_outputs, anchors, matched_idxs):
            self.matched = torch.stack(matched_idxs)
            return {}

    model = FCOS.__new__(FCOS)
    nn.Module.__init__(model)
    model.center_sampling_radius = assign.CENTER_RADIUS
    model.head = Spy()
    half = where.strides[:, None] / 2
    anchors = torch.cat([where.points - half, where.points + half], -1)
    targets = [
        {"boxes": b[keep >= 0], "labels": keep[keep >= 0]}
        for b, keep in zip(boxes, labels, strict=True)
    ]
    model.compute_loss(targets, {}, [anchors] * len(boxes), cells)
    return model.head.matched


@pytest.mark.parametrize("seed", range(8))
def test_equals_torchvision_at_zero_offset(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    shapes = level_shapes(512, 640)
    where = locations(shapes, CPU, half_stride=False)
    boxes = torch.zeros(4, 64, 4)
    labels = torch.full((4, 64), -1)
    for i, count in enumerate((1, 7, 40, 64)):
        boxes[i, :count] = random_boxes(count, 512, 640, g)
        labels[i, :count] = torch.randint(0, 5, (count,), generator=g)
    ours = assign.match(where, boxes, labels)
    theirs = torchvision_matches(where, [h * w for h, w in shapes], boxes, labels)
    assert ours.shape == theirs.shape == (4, sum(h * w for h, w in shapes))
    assert (theirs >= 0).sum() > 200
    # Instances fill the first slots, so slots and indices are the same numbers.
    assert torch.equal(ours, theirs)


def test_locations_are_the_centres_of_the_cells() -> None:
    where = locations(level_shapes(64, 96), CPU)
    level = where.points[where.strides == 32]
    assert level.tolist() == [[16, 16], [48, 16], [80, 16], [16, 48], [48, 48], [80, 48]]
    first = {s: where.points[where.strides == s][0].tolist() for s in STRIDES}
    assert first == {8: [4, 4], 16: [8, 8], 32: [16, 16], 64: [32, 32], 128: [64, 64]}
    assert where.ranges[where.strides == 64].unique(dim=0).tolist() == [[256, 512]]


def test_against_the_rules_location_by_location() -> None:
    """Every rule of the paper in plain Python, half stride included."""
    g = torch.Generator().manual_seed(3)
    where = locations(level_shapes(256, 256), CPU)
    boxes = random_boxes(12, 256, 256, g).double()
    got = assign.match(where, boxes[None].float(), torch.zeros(1, 12, dtype=torch.int64))[0]
    for (x, y), stride, found in zip(
        where.points.tolist(), where.strides.tolist(), got, strict=True
    ):
        low, high = REGRESS_RANGES[STRIDES.index(int(stride))]
        best, best_area = -1, math.inf
        for slot, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            cx, cy, radius = (x1 + x2) / 2, (y1 + y2) / 2, 1.5 * stride
            centre = (
                max(x1, cx - radius),
                max(y1, cy - radius),
                min(x2, cx + radius),
                min(y2, cy + radius),
            )
            inside = centre[0] < x < centre[2] and centre[1] < y < centre[3]
            reach = max(x - x1, y - y1, x2 - x, y2 - y)
            area = (x2 - x1) * (y2 - y1)
            if inside and low < reach <= high and area < best_area:
                best, best_area = slot, area
        assert found == best, (x, y, stride)


def test_targets_of_a_known_box() -> None:
    where = locations(level_shapes(64, 64), CPU)
    boxes = torch.tensor([[[10.0, 20.0, 30.0, 32.0], [0.0, 0.0, 0.0, 0.0]]])
    labels = torch.tensor([[2, -1]])
    targets = assign.targets(where, boxes, labels)
    index = int(
        ((where.points == torch.tensor([20.0, 28.0])) & (where.strides == 8)[:, None])
        .all(1)
        .nonzero()
    )
    assert targets.labels[0, index] == 2
    assert targets.distances[0, index].tolist() == [10 / 8, 8 / 8, 10 / 8, 4 / 8]
    assert targets.centerness[0, index].item() == pytest.approx(math.sqrt(1.0 * 4 / 8))
    background = targets.labels[0] < 0
    assert background.sum() == (targets.matched[0] < 0).sum() > 0
    assert (targets.centerness[0, background] == 0).all()


def test_empty_slots_take_no_location() -> None:
    where = locations(level_shapes(64, 64), CPU)
    boxes = torch.tensor([[[0.0, 0.0, 64.0, 64.0]]])
    assert (assign.match(where, boxes, torch.tensor([[-1]])) == -1).all()
    assert (assign.match(where, boxes, torch.tensor([[0]])) == 0).any()
