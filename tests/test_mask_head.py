"""RoI choice, levels, targets and pasting against torchvision and dense masks."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from batches import random_boxes
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from autotimm import masks
from autotimm.models import mask_head
from autotimm.models.mask_head import MaskHead, RoIs, paste_masks, pool, roi_levels, sample_rois


def test_levels_equal_torchvision() -> None:
    g = torch.Generator().manual_seed(0)
    boxes = random_boxes(2000, 1000, 1300, g, smallest=1.0)
    exact = torch.tensor([[0.0, 0.0, side, side] for side in (112.0, 224.0, 448.0)])
    boxes = torch.cat([boxes, exact])
    theirs = LevelMapper(3, 5, canonical_scale=224, canonical_level=4)([boxes])
    assert theirs.unique().tolist() == [0, 1, 2]
    assert torch.equal(roi_levels(boxes), theirs)


def test_each_roi_is_pooled_from_its_own_level() -> None:
    g = torch.Generator().manual_seed(1)
    levels = [torch.randn(2, 5, 512 // s, 640 // s, generator=g) for s in (8, 16, 32, 64)]
    boxes = torch.stack([random_boxes(20, 512, 640, g) for _ in range(2)])
    boxes[0, 0] = torch.tensor([3.0, 7.0, 600.0, 500.0])
    got = pool(levels, boxes, 7).view(2, 20, 5, 7, 7)
    used = set()
    for image in range(2):
        for i in range(20):
            level = int(roi_levels(boxes[image, i]))
            used.add(level)
            row = torch.cat([torch.tensor([float(image)]), boxes[image, i]])[None]
            expected = roi_align(levels[level], row, 7, 1 / (8 * 2**level), 2, aligned=True)[0]
            torch.testing.assert_close(got[image, i], expected)
    assert used == {0, 1, 2}


def polygon_of_a_star(cx: float, cy: float, radius: float) -> list[float]:
    angle = np.arange(10) * np.pi / 5
    r = np.where(np.arange(10) % 2, 0.45, 1.0) * radius
    return np.stack([cx + r * np.cos(angle), cy + r * np.sin(angle)], -1).flatten().tolist()


def test_targets_equal_roialign_of_the_dense_mask() -> None:
    """Ground-truth boxes and boxes beside them, as predictions are."""
    height, width = 256, 320
    star = polygon_of_a_star(150.0, 120.0, 80.0)
    rle = masks.to_rle([star], height, width)
    dense = torch.from_numpy(masks.decode(rle)).float()
    ys, xs = np.nonzero(masks.decode(rle))
    box = torch.tensor([xs.min(), ys.min(), xs.max() + 1.0, ys.max() + 1.0]).float()
    crop = masks.crop(rle, np.eye(3)[:2], box.tolist())
    shifts = torch.tensor([[0, 0, 0, 0], [-20, -11, 13, 30], [25, 10, -14, 5], [-9, 22, 31, -8.0]])
    rois = RoIs(
        (box + shifts)[None],
        torch.zeros(1, 4, dtype=torch.int64),
        torch.ones(1, 4, dtype=torch.bool),
    )
    got = mask_head.mask_targets(torch.from_numpy(crop)[None, None], box[None, None], rois, 28)
    rows = torch.cat([torch.zeros(4, 1), rois.boxes[0]], 1)
    expected = roi_align(dense[None, None], rows, 28, aligned=True)[:, 0]
    assert (got - expected).abs().mean() < 0.01
    # Off the outline, where RoIAlign is sure, the two must agree entirely.
    sure = (expected < 0.01) | (expected > 0.99)
    assert sure.float().mean() > 0.7
    assert ((got - expected).abs()[sure] < 0.35).all()
    assert ((got >= 0.5) == (expected >= 0.5)).float().mean() > 0.99
    # The whole image's mask squeezed into the RoI, a bug that still trains, is far from it.
    squeezed = F.interpolate(dense[None, None], (28, 28), mode="bilinear")[0, 0]
    assert (squeezed - expected[0]).abs().mean() > 0.1


def test_soft_targets_paste_back_to_the_mask_better_than_rounded_ones() -> None:
    height, width = 256, 320
    rle = masks.to_rle([polygon_of_a_star(150.3, 120.8, 90.0)], height, width)
    truth = torch.from_numpy(masks.decode(rle)).bool()
    box = torch.tensor(masks.box(rle), dtype=torch.float32)
    crop = torch.from_numpy(masks.crop(rle, np.eye(3)[:2], box.tolist()))
    rois = RoIs(
        box[None, None], torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
    )
    soft = mask_head.mask_targets(crop[None, None], box[None, None], rois, 28)

    def iou(target: torch.Tensor) -> float:
        (pasted,) = paste_masks(target, box[None], height, width)
        pasted = pasted[0].bool()
        return ((pasted & truth).sum() / (pasted | truth).sum()).item()

    assert iou(soft) > 0.97
    assert iou(soft) > iou((soft >= 0.5).float()) + 0.005


def test_paste_equals_grid_sample_and_is_near_torchvision() -> None:
    g = torch.Generator().manual_seed(2)
    boxes = random_boxes(12, 200, 300, g, smallest=20.0) + torch.tensor([-9.0, -7.0, 6.0, 8.0])
    coarse = torch.rand(12, 1, 5, 5, generator=g)
    probabilities = F.interpolate(coarse, (28, 28), mode="bicubic").clamp(0, 1)
    got = torch.cat(list(paste_masks(probabilities[:, 0], boxes, 200, 300)))
    assert got.shape == (12, 200, 300)
    assert got.dtype == torch.uint8
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    x = ((torch.arange(300) + 0.5 - x1) / (x2 - x1) * 2 - 1)[:, None, :].expand(12, 200, 300)
    y = ((torch.arange(200) + 0.5 - y1) / (y2 - y1) * 2 - 1)[:, :, None].expand(12, 200, 300)
    sampled = F.grid_sample(probabilities, torch.stack([x, y], -1), align_corners=False)[:, 0]
    clear = (sampled - 0.5).abs() > 1e-4
    assert torch.equal(got[clear], (sampled >= 0.5).to(torch.uint8)[clear])
    theirs = paste_masks_in_image(probabilities, boxes, (200, 300), padding=1)[:, 0] >= 0.5
    both, either = (got.bool() & theirs).sum((1, 2)), (got.bool() | theirs).sum((1, 2))
    assert (both / either.clamp(min=1)).mean() > 0.93  # it rounds boxes to whole pixels


def test_pasting_in_chunks_changes_nothing(monkeypatch) -> None:
    g = torch.Generator().manual_seed(3)
    boxes = random_boxes(9, 64, 80, g)
    probabilities = torch.rand(9, 28, 28, generator=g)
    whole = list(paste_masks(probabilities, boxes, 64, 80))
    monkeypatch.setattr(mask_head, "PASTE_BYTES", 4 * 64 * 80 * 2)
    chunks = list(paste_masks(probabilities, boxes, 64, 80))
    assert [len(chunk) for chunk in chunks] == [2, 2, 2, 2, 1]
    assert torch.equal(torch.cat(chunks), torch.cat(whole))
    assert list(paste_masks(probabilities[:0], boxes[:0], 64, 80)) == []


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
            rois.boxes[0][rois.valid[0]].tolist(),
            rois.slots[0][rois.valid[0]].tolist(),
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
    assert few.boxes.shape == (1, 2, 4)
    assert few.valid.all()
    many = sample_rois(predicted, matched, boxes, labels, 50)
    assert many.boxes.shape == (1, 50, 4)
    assert many.valid.sum() == 4
    assert not sample_rois(predicted, matched * 0 - 1, boxes, labels * 0 - 1, 6).valid.any()


def test_mask_of_one_class_is_that_of_all_classes() -> None:
    torch.manual_seed(0)
    head = MaskHead(16, 5, size=12, num_convs=2)
    torch.nn.init.normal_(head.masks.bias)
    features = torch.randn(7, 16, 6, 6)
    labels = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    every = head(features)
    assert every.shape == (7, 5, 12, 12)
    torch.testing.assert_close(head.of_classes(features, labels), every[torch.arange(7), labels])
    assert head.of_classes(features[:0], labels[:0]).shape == (0, 12, 12)


def test_rois_are_not_rounded_with_the_features() -> None:
    """On maps that hold their own coordinates a rounded RoI shows."""
    levels = []
    for stride in (8, 16, 32):
        y = (torch.arange(1024 // stride) + 0.5) * stride / 1024
        levels.append(torch.stack(torch.broadcast_tensors(y[None, :], y[:, None]))[None])
    boxes = torch.tensor([[[501.3, 633.1, 551.3, 683.1], [900.7, 411.9, 960.7, 471.9]]])
    low = [level.bfloat16() for level in levels]
    with torch.autocast("cpu", torch.bfloat16):
        got = pool(low, boxes, 7)
    assert got.dtype == torch.bfloat16
    expected = pool([level.float() for level in low], boxes, 7)
    torch.testing.assert_close(got.float(), expected, rtol=2**-8, atol=0)


def test_masks_are_pasted_alike_under_autocast() -> None:
    g = torch.Generator().manual_seed(4)
    boxes = random_boxes(9, 200, 300, g)
    probabilities = torch.rand(9, 28, 28, generator=g)
    plain = torch.cat(list(paste_masks(probabilities, boxes, 200, 300)))
    with torch.autocast("cpu", torch.bfloat16):
        low = torch.cat(list(paste_masks(probabilities, boxes, 200, 300)))
    assert torch.equal(plain, low)
