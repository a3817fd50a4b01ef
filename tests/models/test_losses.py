"""Losses compared with torchvision's without centerness weights, and with a float64 reference."""

from __future__ import annotations

import math

import pytest
import torch
from batches import random_boxes
from torchvision.models.detection.fcos import FCOSHead as TorchvisionHead
from torchvision.ops import box_iou, generalized_box_iou_loss

from autotimm.models import assign, losses
from autotimm.models.fcos import HeadOutputs, decode_boxes, level_shapes, locations

CPU = torch.device("cpu")
CLASSES = 4


def example(half_stride: bool, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    where = locations(level_shapes(256, 320), CPU, half_stride)
    boxes = torch.stack([random_boxes(9, 256, 320, g) for _ in range(2)])
    labels = torch.randint(0, CLASSES, (2, 9), generator=g)
    count = len(where.points)
    outputs = HeadOutputs(
        classes=torch.randn(2, count, CLASSES, generator=g) * 2 - 3,
        distances=torch.rand(2, count, 4, generator=g) * 6,
        centerness=torch.randn(2, count, generator=g),
    )
    return where, boxes, labels, outputs, assign.targets(where, boxes, labels)


def test_equal_torchvision_without_centerness_weights() -> None:
    where, boxes, labels, outputs, targets = example(half_stride=False)
    half = where.strides[:, None] / 2
    anchors = torch.cat([where.points - half, where.points + half], -1)
    head = TorchvisionHead(32, 1, CLASSES, num_convs=1)
    theirs = head.compute_loss(
        [{"boxes": b, "labels": x} for b, x in zip(boxes, labels, strict=True)],
        {
            "cls_logits": outputs.classes,
            "bbox_regression": outputs.distances,
            "bbox_ctrness": outputs.centerness[..., None],
        },
        [anchors, anchors],
        list(targets.matched),
    )
    ours = losses.detection_losses(outputs, targets)
    positive = targets.labels >= 0
    giou = losses.giou_loss(outputs.distances, targets.distances)[positive].sum()
    count = ours["positives"]
    assert count > 50
    torch.testing.assert_close(ours["classes"] / count, theirs["classification"])
    torch.testing.assert_close(ours["centerness"] / count, theirs["bbox_ctrness"])
    torch.testing.assert_close(giou / count, theirs["bbox_regression"])


def test_equal_a_float64_reference_with_centerness_weights() -> None:
    _, _, _, outputs, targets = example(half_stride=True, seed=1)
    ours = losses.LossSums(
        masks=torch.tensor(0.0), rois=torch.tensor(0.0), **losses.detection_losses(outputs, targets)
    )
    got = ours.normalised(ours.counts())
    classes = boxes = centerness = weight = 0.0
    positives = 0
    for image in range(2):
        for i, label in enumerate(targets.labels[image].tolist()):
            for k, logit in enumerate(outputs.classes[image, i].double().tolist()):
                p = 1 / (1 + math.exp(-logit))
                if k == label:
                    classes += -0.25 * (1 - p) ** 2 * math.log(p)
                else:
                    classes += -0.75 * p**2 * math.log(1 - p)
            if label < 0:
                continue
            positives += 1
            left, top, right, bottom = targets.distances[image, i].double().tolist()
            w, x, y, z = outputs.distances[image, i].double().tolist()
            c = math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))
            overlap = (min(left, w) + min(right, y)) * (min(top, x) + min(bottom, z))
            hull = (max(left, w) + max(right, y)) * (max(top, x) + max(bottom, z))
            union = (left + right) * (top + bottom) + (w + y) * (x + z) - overlap
            boxes += c * (1 - overlap / union + (hull - union) / hull)
            weight += c
            q = 1 / (1 + math.exp(-outputs.centerness[image, i].double().item()))
            centerness += -(c * math.log(q) + (1 - c) * math.log(1 - q))
    expected = (classes / positives, boxes / weight, centerness / positives)
    actual = (got["classes"], got["boxes"], got["centerness"])
    torch.testing.assert_close(
        torch.stack(actual), torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-5
    )


def test_iou_as_box_quality_equals_torchvisions_box_losses() -> None:
    """No box learns by the quality that the branch learns, and all boxes weigh the same."""
    where, _, _, outputs, targets = example(half_stride=True, seed=3)
    distances = outputs.distances.clone().requires_grad_()
    outputs = outputs._replace(distances=distances)
    usual, got = (losses.detection_losses(outputs, targets, q) for q in ("centerness", "iou"))
    assert got["classes"] == usual["classes"]
    quality = boxes = 0.0
    for image, i in (targets.labels >= 0).nonzero().tolist():
        pair = [decode_boxes(d[image], where)[i, None] for d in (distances, targets.distances)]
        boxes += generalized_box_iou_loss(*pair).item()
        u = box_iou(*pair).item()
        q = 1 / (1 + math.exp(-outputs.centerness[image, i].double().item()))
        quality += -(u * math.log(q) + (1 - u) * math.log(1 - q))
    assert got["centerness"].item() == pytest.approx(quality, rel=1e-4)
    assert got["boxes"].item() == pytest.approx(boxes, rel=1e-4)
    assert got["box_weights"] == got["positives"] > usual["box_weights"]
    assert not got["centerness"].requires_grad  # of the outputs, the distances alone would


def test_background_gets_a_classification_gradient() -> None:
    _, _, _, outputs, targets = example(half_stride=True)
    logits = outputs.classes.clone().requires_grad_()
    losses.detection_losses(outputs._replace(classes=logits), targets)["classes"].backward()
    background = targets.labels < 0
    assert background.sum() > 1000
    assert (logits.grad[background] > 0).all()


def test_extreme_half_precision_outputs_stay_finite() -> None:
    """The outputs are fp16's largest numbers, as in a diverging step under autocast."""
    _, _, _, outputs, targets = example(half_stride=True)
    wild = HeadOutputs(
        classes=torch.full_like(outputs.classes, 6e4).half(),
        distances=torch.full_like(outputs.distances, 6e4).half(),
        centerness=torch.full_like(outputs.centerness, -6e4).half(),
    )
    for value in losses.detection_losses(wild, targets).values():
        assert value.dtype == torch.float32
        assert torch.isfinite(value)


def test_half_precision_outputs_lose_nothing_more() -> None:
    """The loss of rounded outputs equals the loss of the same numbers in float32."""
    _, _, _, outputs, targets = example(half_stride=True, seed=2)
    low = HeadOutputs(*(part.half() for part in outputs))
    same = HeadOutputs(*(part.float() for part in low))
    got, expected = (losses.detection_losses(one, targets) for one in (low, same))
    assert got == expected


def test_counts_are_at_least_one() -> None:
    zero = torch.tensor(0.0)
    sums = losses.LossSums(torch.tensor(3.0), zero, zero, zero, zero, zero, zero)
    assert sums.normalised(sums.counts())["classes"] == 3.0
    assert sums.normalised(torch.tensor([6.0, 1.0, 1.0]))["classes"] == 0.5


def test_boxes_without_size_give_finite_gradients_and_no_wait() -> None:
    """All distances are zero, as after a ReLU, and no operation's backward pass reads a value."""
    _, _, _, outputs, targets = example(half_stride=True)
    distances = torch.zeros_like(outputs.distances).requires_grad_()
    loss = losses.detection_losses(outputs._replace(distances=distances), targets)["boxes"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss.backward()
    assert torch.isfinite(distances.grad).all()
    assert not {"aten::item", "aten::_local_scalar_dense"} & {e.key for e in profile.key_averages()}


def test_mask_loss_is_the_mean_over_cells_of_the_valid_rois() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 6, 6, generator=g)
    target = torch.rand(5, 6, 6, generator=g)
    valid = torch.tensor([True, False, True, True, False])
    expected = sum(
        torch.nn.functional.binary_cross_entropy(logits[i].double().sigmoid(), target[i].double())
        for i in (0, 2, 3)
    )
    torch.testing.assert_close(losses.mask_loss(logits, target, valid).double(), expected)
    huge = losses.mask_loss(torch.full((5, 6, 6), 6e4).half(), target, valid)
    assert huge.dtype == torch.float32
    assert torch.isfinite(huge)


def test_dice_is_added_to_the_loss_of_masks() -> None:
    """Against float64; a RoI without any cell of its instance, and padding of wild numbers too."""
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 6, 6, generator=g) * 3
    target = torch.rand(4, 6, 6, generator=g)
    target[1] = 0
    logits[3] = 6e4
    valid = torch.tensor([True, True, True, False])
    expected = 0.0
    for i in range(3):
        t = target[i].double()
        p = 1 / (1 + (-logits[i].double()).exp())
        cross_entropy = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
        dice = 1 - (2 * (p * t).sum() + 1) / ((p * p).sum() + (t * t).sum() + 1)
        expected += (cross_entropy + dice).item()
    for given in (logits, logits.clone().requires_grad_()):
        loss = losses.mask_loss(given, target, valid, "bce+dice")
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert torch.isfinite(given.grad).all()
    assert (given.grad[3] == 0).all()
    perfect = torch.where(target > 0.5, 50.0, -50.0)
    assert losses.dice_loss(perfect, (target > 0.5).float()).abs().max() < 1e-6
