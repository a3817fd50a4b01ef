"""The sampling of RoIs, their levels and targets, compared with torchvision and dense masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from batches import polygon_of_a_star, random_boxes
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from autotimm.coco import masks
from autotimm.models import mask_head
from autotimm.models.mask_head import MaskHead, RoIs, pool, roi_levels, sample_rois


def test_levels_equal_torchvision() -> None:
    g = torch.Generator().manual_seed(0)
    boxes = random_boxes(2000, 1000, 1300, g, smallest=1.0)
    exact = torch.tensor([[0.0, 0.0, side, side] for side in (112.0, 224.0, 448.0)])
    boxes = torch.cat([boxes, exact])
    for finest in (2, 3):
        theirs = LevelMapper(finest, 5, canonical_scale=224, canonical_level=4)([boxes])
        assert theirs.unique().tolist() == list(range(6 - finest))
        assert torch.equal(roi_levels(boxes, finest), theirs + finest)


@pytest.mark.parametrize("finest", [2, 3])
def test_each_roi_is_pooled_from_its_own_level(finest: int) -> None:
    g = torch.Generator().manual_seed(1)
    sides = [(512 >> n, 640 >> n) for n in range(finest, 7)]
    levels = [torch.randn(2, 5, *side, generator=g) for side in sides]
    boxes = torch.stack([random_boxes(20, 512, 640, g) for _ in range(2)])
    boxes[0, 0] = torch.tensor([3.0, 7.0, 600.0, 500.0])
    whose = torch.arange(2).repeat_interleave(20)
    got = pool(levels, boxes.flatten(0, 1), whose, 7, finest).view(2, 20, 5, 7, 7)
    used = set()
    for image in range(2):
        for i in range(20):
            level = int(roi_levels(boxes[image, i], finest))
            used.add(level)
            row = torch.cat([torch.tensor([float(image)]), boxes[image, i]])[None]
            expected = roi_align(levels[level - finest], row, 7, 1 / 2**level, 2, aligned=True)[0]
            torch.testing.assert_close(got[image, i], expected)
    assert used == set(range(finest, 6))


def test_targets_equal_roialign_of_the_dense_mask() -> None:
    """The RoIs are the ground-truth box and shifted boxes, as predictions are."""
    height, width = 256, 320
    star = polygon_of_a_star(150.0, 120.0, 80.0)
    rle = masks.to_rle([star], height, width)
    dense = torch.from_numpy(masks.decode(rle)).float()
    ys, xs = np.nonzero(masks.decode(rle))
    box = torch.tensor([xs.min(), ys.min(), xs.max() + 1.0, ys.max() + 1.0]).float()
    crop = masks.crop(rle, np.eye(3)[:2], box.tolist())
    shifts = torch.tensor([[0, 0, 0, 0], [-20, -11, 13, 30], [25, 10, -14, 5], [-9, 22, 31, -8.0]])
    first = torch.zeros(4, dtype=torch.int64)
    rois = RoIs(box + shifts, first, first, torch.ones(4, dtype=torch.bool))
    got = mask_head.mask_targets(torch.from_numpy(crop)[None, None], box[None, None], rois, 28)
    rows = torch.cat([torch.zeros(4, 1), rois.boxes], 1)
    expected = roi_align(dense[None, None], rows, 28, aligned=True)[:, 0]
    assert (got - expected).abs().mean() < 0.01
    # Away from the outline, where RoIAlign gives nearly 0 or 1, both must agree.
    sure = (expected < 0.01) | (expected > 0.99)
    assert sure.float().mean() > 0.7
    assert ((got - expected).abs()[sure] < 0.35).all()
    assert ((got >= 0.5) == (expected >= 0.5)).float().mean() > 0.99
    # A known bug, with which a model still trains, resizes the whole image's mask to the target.
    squeezed = F.interpolate(dense[None, None], (28, 28), mode="bilinear")[0, 0]
    assert (squeezed - expected[0]).abs().mean() > 0.1


def test_sampled_rois_are_foreground_only() -> None:
    boxes = torch.tensor([[[10.0, 10.0, 50.0, 50.0], [60.0, 60.0, 90.0, 90.0], [0.0] * 4]])
    labels = torch.tensor([[1, 0, -1]])
    predicted = torch.tensor(
        [
            [
                [12.0, 10.0, 50.0, 52.0],  # of instance 0, good
                [30.0, 30.0, 80.0, 80.0],  # of instance 0, IoU below a half
                [61.0, 60.0, 90.0, 88.0],  # of instance 1, good
                [60.0, 60.0, 90.0, 90.0],  # good, but of a background location
            ]
        ]
    )
    matched = torch.tensor([[0, 0, 1, -1]])
    rois = sample_rois(predicted, matched, boxes, labels, 6)
    assert rois.valid.sum() == 4
    kept = {
        (tuple(b), s)
        for b, s in zip(
            rois.boxes[rois.valid].tolist(),
            rois.slots[rois.valid].tolist(),
            strict=True,
        )
    }
    assert kept == {
        ((10.0, 10.0, 50.0, 50.0), 0),
        ((60.0, 60.0, 90.0, 90.0), 1),
        ((12.0, 10.0, 50.0, 52.0), 0),
        ((61.0, 60.0, 90.0, 88.0), 1),
    }
    few = sample_rois(predicted, matched, boxes, labels, 2)
    assert few.boxes.shape == (2, 4)
    assert few.valid.all()
    many = sample_rois(predicted, matched, boxes, labels, 50)
    assert many.boxes.shape == (50, 4)
    assert many.valid.sum() == 4
    assert not sample_rois(predicted, matched * 0 - 1, boxes, labels * 0 - 1, 6).valid.any()


def test_images_take_turns_for_the_places() -> None:
    """Crowded images take the places that others leave, and each RoI keeps its own image."""
    counts = [30, 0, 3, 12]
    boxes, labels = torch.zeros(4, 30, 4), torch.full((4, 30), -1)
    for i, count in enumerate(counts):
        low = torch.arange(count)[:, None] * 10.0 + 1000 * i
        boxes[i, :count] = torch.cat([low, low, low + 8, low + 8], 1)
        labels[i, :count] = 0
    predicted, matched = torch.zeros(4, 5, 4), torch.full((4, 5), -1)
    for places, shares in [(8, [3, 0, 3, 2]), (24, [11, 0, 3, 10]), (40, [25, 0, 3, 12])]:
        rois = sample_rois(predicted, matched, boxes, labels, places)
        assert rois.valid.all()
        taken = rois.image.bincount(minlength=4).tolist()
        # The last place may go to any image that still has candidates.
        assert all(abs(a - b) <= 1 for a, b in zip(taken, shares, strict=True)), taken
        assert len(torch.stack([rois.image, rois.slots]).unique(dim=1)[0]) == places
        assert torch.equal(rois.boxes, boxes[rois.image, rois.slots])
    assert sample_rois(predicted, matched, boxes, labels, 50).valid.sum() == 45


def test_mask_of_one_class_is_that_of_all_classes() -> None:
    torch.manual_seed(0)
    head = MaskHead(16, 5, size=12, num_convs=2)
    torch.nn.init.normal_(head.masks.bias)
    features = torch.randn(7, 16, 6, 6)
    labels = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    every = head(features)
    assert every.shape == (7, 5, 12, 12)
    torch.testing.assert_close(head(features, labels), every[torch.arange(7), labels])
    assert head(features[:0], labels[:0]).shape == (0, 12, 12)


def test_rois_are_not_rounded_with_the_features() -> None:
    """The maps hold their own coordinates, so the result would show a rounded RoI."""
    levels = []
    for stride in (8, 16, 32):
        y = (torch.arange(1024 // stride) + 0.5) * stride / 1024
        levels.append(torch.stack(torch.broadcast_tensors(y[None, :], y[:, None]))[None])
    boxes = torch.tensor([[501.3, 633.1, 551.3, 683.1], [900.7, 411.9, 960.7, 471.9]])
    first = torch.zeros(2, dtype=torch.int64)
    low = [level.bfloat16() for level in levels]
    with torch.autocast("cpu", torch.bfloat16):
        got = pool(low, boxes, first, 7)
    assert got.dtype == torch.bfloat16
    expected = pool([level.float() for level in low], boxes, first, 7)
    torch.testing.assert_close(got.float(), expected, rtol=2**-8, atol=0)


@pytest.mark.parametrize("slots", [3, 70])
def test_targets_are_those_of_each_rois_own_instance(slots: int) -> None:
    """Compared with torchvision, one RoI at a time, with fewer and with more slots than RoIs."""
    g = torch.Generator().manual_seed(5)
    crops = (torch.rand(2, slots, 56, 56, generator=g) < 0.4).to(torch.uint8)
    boxes = torch.stack([random_boxes(slots, 200, 300, g) for _ in range(2)])
    chosen = torch.randint(0, slots, (2, 9), generator=g)
    truth = boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
    spread = (truth[..., 2:] - truth[..., :2]).repeat(1, 1, 2) / 4
    predicted = truth + spread * torch.randn(truth.shape, generator=g).clamp(-1, 1)
    whose = torch.arange(2).repeat_interleave(9)
    rois = RoIs(predicted.flatten(0, 1), whose, chosen.flatten(), torch.ones(18) > 0)
    got = mask_head.mask_targets(crops, boxes, rois, 14).view(2, 9, 14, 14)
    for image in range(2):
        for i, slot in enumerate(chosen[image].tolist()):
            low, high = boxes[image, slot].split(2)
            place = (predicted[image, i].view(2, 2) - low) / (high - low) * 56 + 1
            ringed = F.pad(crops[image, slot].float(), (1, 1, 1, 1))
            row = torch.cat([torch.zeros(1), place.flatten()])[None]
            expected = roi_align(ringed[None, None], row, 14, 1.0, 4, aligned=True)[0, 0]
            torch.testing.assert_close(got[image, i], expected, rtol=1e-4, atol=1e-4)


def test_padding_rois_have_finite_targets() -> None:
    """They may refer to an empty slot, whose box has no extent, or to a box far away."""
    unit = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    rois = RoIs(unit, torch.tensor([0, 0]), torch.tensor([1, 0]), torch.zeros(2) > 0)
    boxes = torch.tensor([[[5e4, 5e4, 5e4 + 1, 5e4 + 1], [0.0] * 4]])
    crops = torch.ones(1, 2, 112, 112, dtype=torch.uint8)
    assert torch.isfinite(mask_head.mask_targets(crops, boxes, rois, 28)).all()


def test_a_predicted_box_counts_from_an_iou_of_a_half_on() -> None:
    truth = torch.tensor([[[0.0, 0.0, 40.0, 40.0]]])
    predicted = torch.tensor([[[0.0, 0.0, 40.0, 20.0], [0.0, 0.0, 40.0, 19.5]]])
    rois = sample_rois(predicted, torch.tensor([[0, 0]]), truth, torch.tensor([[2]]), 3)
    assert rois.valid.sum() == 2
    assert rois.boxes[rois.valid][:, 3].sort().values.tolist() == [20, 40]


def test_predictions_that_are_not_finite_are_not_sampled() -> None:
    truth = torch.tensor([[[0.0, 0.0, 40.0, 40.0]]])
    predicted = torch.tensor([[[torch.nan] * 4, [-torch.inf, -torch.inf, torch.inf, torch.inf]]])
    rois = sample_rois(predicted, torch.tensor([[0, 0]]), truth, torch.tensor([[2]]), 3)
    assert rois.valid.sum() == 1
    assert torch.isfinite(rois.boxes).all()
