"""NMS of many classes on large images against NMS of each class by itself."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import nms

from autotimm.models.class_nms import class_nms


def one_class_after_the_other(
    boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, threshold: float
) -> set[int]:
    kept: list[int] = []
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        kept += members[nms(boxes[members], scores[members], threshold)].tolist()
    return set(kept)


@pytest.mark.parametrize(
    ("side", "classes"), [(640, 80), (4000, 1203), (20_000, 1203), (4000, 10_000_000)]
)
def test_each_class_by_itself(side: int, classes: int) -> None:
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(300, 2, generator=g) * (side - 30)
    boxes = torch.cat([corner, corner + 4 + 20 * torch.rand(300, 2, generator=g)], 1)
    boxes = torch.cat([boxes, boxes + 3 * torch.rand(300, 4, generator=g)])  # each found twice
    labels = torch.randint(classes // 2, classes, (300,), generator=g).repeat(2)
    scores = torch.rand(600, generator=g)
    kept = class_nms(boxes, scores, labels, 0.5)
    assert set(kept.tolist()) == one_class_after_the_other(boxes, scores, labels, 0.5)
    assert torch.equal(scores[kept], scores[kept].sort(descending=True).values)


def test_none() -> None:
    none = torch.zeros(0)
    assert class_nms(none.reshape(0, 4), none, none.long(), 0.5).shape == (0,)
