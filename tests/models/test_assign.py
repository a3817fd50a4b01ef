"""Assignment, compared with torchvision's and with FCOS's rules for one location at a time."""

from __future__ import annotations

import math

import pytest
import torch
from batches import random_boxes
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models.detection.fcos import FCOS

from autotimm.models import assign
from autotimm.models.fcos import REGRESS_RANGES, Locations, level_shapes, locations
from autotimm.models.pyramid import STRIDES

CPU = torch.device("cpu")


def torchvision_matches(where: Locations, cells: list[int], boxes, labels) -> torch.Tensor:
    """The assignment of torchvision's FCOS, which its compute_loss passes to the head."""

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
    # Instances fill the first slots, so the slot of an instance equals its index.
    assert torch.equal(ours, theirs)


def test_locations_are_the_centres_of_the_cells() -> None:
    where = locations(level_shapes(64, 96), CPU)
    level = where.points[where.strides == 32]
    assert level.tolist() == [[16, 16], [48, 16], [80, 16], [16, 48], [48, 48], [80, 48]]
    first = {s: where.points[where.strides == s][0].tolist() for s in STRIDES}
    assert first == {8: [4, 4], 16: [8, 8], 32: [16, 16], 64: [32, 32], 128: [64, 64]}
    assert where.ranges[where.strides == 64].unique(dim=0).tolist() == [[256, 512]]


def test_against_the_rules_location_by_location() -> None:
    """Every rule of the paper in plain Python, with the half stride."""
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


def test_a_distance_at_the_end_of_a_range_belongs_to_the_finer_level() -> None:
    """Ranges are (low, high]: P3 takes 64, and P4 does not. In torchvision neither takes it."""
    shapes = level_shapes(192, 192)
    where, cells = locations(shapes, CPU), [h * w for h, w in shapes]
    for stride, centre, half in ((8, 68.0, 64.0), (16, 72.0, 64.0), (16, 136.0, 128.0)):
        low, high = centre - half, centre + half
        boxes, labels = torch.tensor([[[low, low, high, high]]]), torch.tensor([[0]])
        at = (where.points == centre).all(1) & (where.strides == stride)
        assert at.sum() == 1
        expected = 0 if (stride, half) != (16, 64.0) else -1
        assert assign.match(where, boxes, labels)[0, at].item() == expected
        theirs = torchvision_matches(where, cells, boxes, labels)
        assert theirs[0, at].item() == -1


def test_the_smaller_of_nearly_equal_areas_wins_and_of_equal_ones_the_first() -> None:
    where = locations(level_shapes(64, 64), CPU)
    boxes = torch.tensor([[[4.0, 4.0, 44.0, 44.0], [4.0, 4.0, 44.0, 43.9], [4.0, 4.0, 44.0, 43.9]]])
    got = assign.match(where, boxes, torch.zeros(1, 3, dtype=torch.int64))
    assert got.unique().tolist() == [-1, 1]


@pytest.mark.parametrize("count", [230, 500])
def test_chunks_of_slots_give_the_same_matches(count: int, monkeypatch) -> None:
    g = torch.Generator().manual_seed(count)
    where = locations(level_shapes(256, 320), CPU)
    boxes = torch.zeros(2, 512, 4)
    labels = torch.full((2, 512), -1)
    boxes[0, :count] = random_boxes(count, 256, 320, g)
    labels[0, :count] = 1
    boxes[:, 300] = boxes[:, 7]  # a tie between chunks
    whole = assign.match(where, boxes, labels)
    assert len(whole[0].unique()) > 100
    for pairs in (1, 2 * len(where.points) * 33):
        monkeypatch.setattr(assign, "PAIRS_AT_ONCE", pairs)
        assert torch.equal(assign.match(where, boxes, labels), whole)


def test_pairs_are_never_all_made_at_once() -> None:
    """All pairs of 16 images of 800 pixels with 512 slots would take 437 MB per tensor."""
    where = locations(level_shapes(800, 800), CPU)
    seen = []

    class Spy(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for one in result if isinstance(result, tuple) else (result,):
                if isinstance(one, torch.Tensor):
                    seen.append(one.numel() * one.element_size())
            return result

    with torch.device("meta"):
        boxes, labels = torch.zeros(16, 512, 4), torch.zeros(16, 512, dtype=torch.int64)
    with Spy():
        assign.targets(type(where)(*(part.to("meta") for part in where)), boxes, labels)
    assert max(seen) <= 4 * assign.PAIRS_AT_ONCE


def test_odd_boxes_have_finite_targets() -> None:
    """Boxes of one pixel and of the whole image, and boxes partly or entirely outside of it."""
    where = locations(level_shapes(256, 320), CPU)
    boxes = torch.tensor(
        [
            [
                [11.5, 11.5, 12.5, 12.5],  # contains the location at 12, 12
                [21.0, 21.0, 22.0, 22.0],  # contains no location
                [0.0, 0.0, 320.0, 256.0],
                [-60.0, -50.0, 90.0, 90.0],
                [400.0, 10.0, 500.0, 90.0],
            ]
        ]
    )
    labels = torch.arange(5)[None]
    targets = assign.targets(where, boxes, labels)
    assert targets.matched.unique().tolist() == [-1, 0, 2, 3]
    assert (targets.matched == 0).sum() == 1
    for part in targets:
        assert torch.isfinite(part.float()).all()
    positive = targets.labels >= 0
    assert (targets.distances[positive] > 0).all()
    assert (targets.centerness[positive] > 0).all() and (targets.centerness <= 1).all()
