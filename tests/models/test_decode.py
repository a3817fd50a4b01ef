"""Detections against torchvision's post-processing of the same logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.fcos import FCOS

from autotimm.models.decode import decode
from autotimm.models.fcos import HeadOutputs, level_shapes, locations

CPU = torch.device("cpu")


def outputs_like_a_network(count: int, classes: int, seed: int) -> HeadOutputs:
    g = torch.Generator().manual_seed(seed)
    return HeadOutputs(
        classes=torch.randn(2, count, classes, generator=g) * 2 - 4,
        distances=torch.rand(2, count, 4, generator=g) * 5,
        centerness=torch.randn(2, count, generator=g),
    )


@pytest.mark.parametrize("seed", range(3))
def test_equal_torchvision(seed: int) -> None:
    height, width, classes = 256, 320, 6
    shapes = level_shapes(height, width)
    cells = [h * w for h, w in shapes]
    where = locations(shapes, CPU, half_stride=False)
    outputs = outputs_like_a_network(sum(cells), classes, seed)
    ours = decode(outputs, where, cells, (height, width), 0.0, 0.6, 100)

    model = FCOS.__new__(FCOS)
    nn.Module.__init__(model)
    model.box_coder = BoxLinearCoder(normalize_by_size=True)
    # torchvision thresholds the score, we the class probability: with none they must agree.
    model.score_thresh, model.nms_thresh = 0.0, 0.6
    model.topk_candidates, model.detections_per_img = 1000, 100
    half = where.strides[:, None] / 2
    anchors = torch.cat([where.points - half, where.points + half], -1)
    theirs = model.postprocess_detections(
        {
            "cls_logits": list(outputs.classes.split(cells, 1)),
            "bbox_regression": list(outputs.distances.split(cells, 1)),
            "bbox_ctrness": list(outputs.centerness[..., None].split(cells, 1)),
        },
        [list(anchors.split(cells))] * 2,
        [(height, width)] * 2,
    )
    for a, b in zip(ours, theirs, strict=True):
        assert len(a["scores"]) == 100
        torch.testing.assert_close(a["scores"], b["scores"])
        torch.testing.assert_close(a["boxes"], b["boxes"])
        assert torch.equal(a["labels"], b["labels"])


def test_threshold_is_on_the_class_before_centerness_lowers_it() -> None:
    shapes = level_shapes(64, 64)
    cells = [h * w for h, w in shapes]
    where = locations(shapes, CPU)
    classes = torch.full((1, sum(cells), 2), -20.0)
    classes[0, 10, 1] = torch.tensor(0.06).logit()
    classes[0, 40, 0] = torch.tensor(0.04).logit()
    outputs = HeadOutputs(classes, torch.ones(1, sum(cells), 4), torch.full((1, sum(cells)), -2.0))
    (found,) = decode(outputs, where, cells, (64, 64), score_thresh=0.05)
    assert found["labels"].tolist() == [1]
    expected = (0.06 * torch.tensor(-2.0).sigmoid()).sqrt()
    torch.testing.assert_close(found["scores"], expected[None])
    # Location 10 of P3 is x = 20, y = 12; one stride of 8 to each side.
    assert found["boxes"].tolist() == [[12, 4, 28, 20]]


def test_nms_is_by_class_and_the_limit_holds() -> None:
    shapes = level_shapes(64, 64)
    cells = [h * w for h, w in shapes]
    where = locations(shapes, CPU)
    classes = torch.full((1, sum(cells), 2), -20.0)
    classes[0, 9] = torch.tensor([2.0, 1.0])  # the same box, two classes
    classes[0, 10, 0] = 0.0  # its neighbour: IoU 0.6 with boxes of four strides
    outputs = HeadOutputs(classes, torch.full((1, sum(cells), 4), 2.0), torch.zeros(1, sum(cells)))
    (found,) = decode(outputs, where, cells, (64, 64), nms_thresh=0.5)
    assert found["labels"].tolist() == [0, 1]
    (found,) = decode(outputs, where, cells, (64, 64), nms_thresh=0.7)
    assert found["labels"].tolist() == [0, 1, 0]
    (found,) = decode(outputs, where, cells, (64, 64), nms_thresh=0.7, max_detections=2)
    assert found["labels"].tolist() == [0, 1]


def test_nothing_found() -> None:
    shapes = level_shapes(64, 64)
    cells = [h * w for h, w in shapes]
    outputs = HeadOutputs(
        torch.full((1, sum(cells), 2), -20.0),
        torch.ones(1, sum(cells), 4),
        torch.zeros(1, sum(cells)),
    )
    (found,) = decode(outputs, locations(shapes, CPU), cells, (64, 64))
    assert found["boxes"].shape == (0, 4)
    assert found["labels"].shape == found["scores"].shape == (0,)


def test_a_level_gives_its_thousand_best_candidates() -> None:
    """Before NMS, which of 1,280 boxes of one location each would otherwise leave more."""
    shapes = level_shapes(256, 320)
    cells = [h * w for h, w in shapes]
    where = locations(shapes, CPU)
    g = torch.Generator().manual_seed(0)
    classes = torch.rand(1, sum(cells), 1, generator=g) * 2
    tight = torch.full((1, sum(cells), 4), 0.2)
    outputs = HeadOutputs(classes, tight, torch.zeros(1, sum(cells)))
    (found,) = decode(outputs, where, cells, (256, 320), max_detections=5000)
    assert cells[0] == 1280
    assert len(found["scores"]) == 1000 + sum(cells[1:])
    side = found["boxes"][:, 2] - found["boxes"][:, 0]
    finest = found["scores"][(side - 0.4 * 8).abs() < 1e-3]
    expected = (classes[0, :1280, 0].sigmoid() * 0.5).sqrt().sort(descending=True).values[:1000]
    torch.testing.assert_close(finest, expected)


def test_outputs_that_are_no_numbers_give_detections_that_are() -> None:
    """Of a network that diverged; what is good among its outputs is found all the same."""
    shapes = level_shapes(64, 64)
    cells = [h * w for h, w in shapes]
    where = locations(shapes, CPU)
    classes = torch.full((1, sum(cells), 200), torch.nan)
    distances = torch.ones(1, sum(cells), 4)
    centerness = torch.zeros(1, sum(cells))
    wild = torch.tensor([torch.nan, torch.inf, -torch.inf, 6e4, -6e4])
    classes[0, :5] = wild[:, None]
    classes[0, 5:20, 7] = 9.0
    distances[0, 5:10] = wild.relu()[:, None]
    centerness[0, 10:15] = wild
    distances[0, 15] = 0.0  # a box without area
    classes[0, 20:30] = 1.0  # 2,000 scores that are none, where a level has 1,000 candidates
    centerness[0, 20:30] = torch.nan
    for kind in (torch.float32, torch.float16):
        outputs = HeadOutputs(*(part.to(kind) for part in (classes, distances, centerness)))
        (found,) = decode(outputs, where, cells, (64, 64), max_detections=3000)
        assert (found["labels"] == 7).sum() >= 5
        assert ((found["scores"] >= 0) & (found["scores"] <= 1)).all()
        assert ((found["boxes"] >= 0) & (found["boxes"] <= 64)).all()
        assert (found["boxes"][:, 2:] > found["boxes"][:, :2]).all()


def test_half_precision_outputs_are_decoded_in_float32() -> None:
    """In half precision small probabilities round to nothing and centres by up to a pixel."""
    shapes = level_shapes(1024, 1024)
    cells = [h * w for h, w in shapes]
    where = locations(shapes, CPU)
    whole = outputs_like_a_network(sum(cells), 3, seed=0)
    low = HeadOutputs(*(part[:1].half() for part in whole))
    same = HeadOutputs(*(part.float() for part in low))
    for a, b in zip(
        decode(low, where, cells, (1024, 1024)),
        decode(same, where, cells, (1024, 1024)),
        strict=True,
    ):
        for key in ("boxes", "labels", "scores"):
            assert torch.equal(a[key], b[key]), key
