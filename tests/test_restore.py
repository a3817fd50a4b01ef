"""Detections on the canvas, back on the original image, against masks drawn there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from autotimm import masks
from autotimm.models.restore import restore

HEIGHT, WIDTH = 240, 400


def ellipse(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return (((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1).astype(np.uint8)


def detection(dense: np.ndarray, box: list[float], scale: torch.Tensor, offset: torch.Tensor):
    """What a perfect network says of a mask: its box on the canvas, the mask inside of it."""
    rows = torch.tensor([[0.0, *box]])
    inside = roi_align(torch.from_numpy(dense).float()[None, None], rows, 28, aligned=True)[:, 0]
    canvas = torch.tensor([box]) * scale.repeat(2) + offset.repeat(2)
    return {
        "boxes": canvas,
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.9]),
        "masks": inside,
    }


@pytest.mark.parametrize(
    ("scale", "offset"),
    [((1.0, 1.0), (0.0, 0.0)), ((0.5, 0.5), (0.0, 0.0)), ((1.6, 0.7), (13.0, 21.0))],
)
def test_box_and_mask_come_back(scale, offset) -> None:
    truth = ellipse(200, 110, 90, 60)
    box = [110.0, 50.0, 290.0, 170.0]
    s, o = torch.tensor(scale), torch.tensor(offset)
    found = restore(detection(truth, box, s, o), s, o, HEIGHT, WIDTH)
    torch.testing.assert_close(found["boxes"], torch.tensor([box]))
    got = masks.decode(found["rles"][0])
    assert got.shape == (HEIGHT, WIDTH)
    assert (got & truth).sum() / (got | truth).sum() > 0.98


def test_a_mask_whose_box_leaves_the_image_is_cut_not_squeezed() -> None:
    truth = ellipse(20, 110, 90, 60)
    whole = np.zeros((HEIGHT, WIDTH + 200), np.uint8)  # the same ellipse, where it has room
    y, x = np.mgrid[:HEIGHT, : WIDTH + 200] + 0.5
    whole[((x - 220) / 90) ** 2 + ((y - 110) / 60) ** 2 <= 1] = 1
    s, o = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 0.0])
    shifted = detection(whole, [130.0, 50.0, 310.0, 170.0], s, o)
    shifted["boxes"] = shifted["boxes"] - torch.tensor([100.0, 0.0, 100.0, 0.0])  # 200 px at 0.5
    found = restore(shifted, s, o, HEIGHT, WIDTH)
    assert found["boxes"].tolist() == [[0.0, 50.0, 110.0, 170.0]]
    got = masks.decode(found["rles"][0])
    assert (got & truth).sum() / (got | truth).sum() > 0.98


def test_what_lies_in_the_padding_is_left_out() -> None:
    s, o = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 0.0])
    both = {
        "boxes": torch.tensor([[10.0, 130.0, 50.0, 150.0], [10.0, 10.0, 50.0, 50.0]]),
        "labels": torch.tensor([0, 1]),
        "scores": torch.tensor([0.9, 0.8]),
        "masks": torch.ones(2, 28, 28),
    }
    found = restore(both, s, o, HEIGHT, WIDTH)  # the canvas holds 120 rows of image
    assert found["labels"].tolist() == [1]
    assert len(found["rles"]) == 1
    assert 0.99 * 80 * 80 < masks.area(found["rles"][0]) <= 80 * 80
