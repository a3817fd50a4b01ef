"""Detections in original pixels, compared with masks that were drawn there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from autotimm.coco import masks
from autotimm.models.restore import restore

HEIGHT, WIDTH = 240, 400


def ellipse(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return (((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1).astype(np.uint8)


def detection(dense: np.ndarray, box: list[float], scale: torch.Tensor, offset: torch.Tensor):
    """The output of a perfect network for a mask: its box on the canvas and the mask inside."""
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
    whole = np.zeros((HEIGHT, WIDTH + 200), np.uint8)  # the same ellipse with room on the left
    y, x = np.mgrid[:HEIGHT, : WIDTH + 200] + 0.5
    whole[((x - 220) / 90) ** 2 + ((y - 110) / 60) ** 2 <= 1] = 1
    s, o = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 0.0])
    shifted = detection(whole, [130.0, 50.0, 310.0, 170.0], s, o)
    shifted["boxes"] = shifted["boxes"] - torch.tensor([100.0, 0.0, 100.0, 0.0])  # 200 px at 0.5
    found = restore(shifted, s, o, HEIGHT, WIDTH)
    assert found["boxes"].tolist() == [[0.0, 50.0, 110.0, 170.0]]
    got = masks.decode(found["rles"][0])
    assert (got & truth).sum() / (got | truth).sum() > 0.98


def test_detections_in_the_padding_are_removed() -> None:
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


def test_dense_masks_are_those_of_the_rles() -> None:
    s, o = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 0.0])
    made = detection(ellipse(200, 110, 90, 60), [110.0, 50.0, 290.0, 170.0], s, o)
    (rle,) = restore(made, s, o, HEIGHT, WIDTH)["rles"]
    found = restore(made, s, o, HEIGHT, WIDTH, dense=True)
    assert "rles" not in found
    assert found["masks"].dtype == torch.uint8
    assert np.array_equal(found["masks"][0].numpy(), masks.decode(rle))


LARGE = """
import re, sys, numpy as np, torch
from autotimm import InstanceSegmentor
from autotimm.models import restore

how, H, W = sys.argv[1], 4000, 8000
torch.manual_seed(0)
picture = np.random.default_rng(0).integers(0, 255, (H, W, 3), np.uint8)
def bytes_of(field):
    with open("/proc/self/status") as file:
        return 1024 * int(re.search(rf"^{field}:\\s+(\\d+) kB", file.read(), re.M)[1])
if how == "filling":  # every mask fills the image
    s = torch.tensor([0.08, 0.08])
    made = {
        "boxes": torch.tensor([[0.0, 0.0, 640.0, 320.0]]).repeat(30, 1),
        "labels": torch.zeros(30, dtype=torch.int64),
        "scores": torch.ones(30),
        "masks": torch.ones(30, 28, 28),
    }
    found = restore.restore(made, s, torch.zeros(2), H, W)
else:
    model = InstanceSegmentor(
        "resnet18", 80, pretrained=False, compile_model=False, score_thresh=0.0
    )
    small = torch.from_numpy(picture[::12, ::12]).permute(2, 0, 1) / 255.0
    (found,) = model.predict(small, (H, W), rles=how == "rles")
    if how == "dense":
        assert found["masks"].shape == (100, H, W)
print(len(found["scores"]), bytes_of("VmHWM") - picture.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak in /proc")
@pytest.mark.parametrize(("how", "instances", "limit"), [("rles", 100, 2.0), ("filling", 30, 1.5)])
def test_many_instances_of_a_large_image_take_little_memory(
    how: str, instances: int, limit: float
) -> None:
    """The process takes less than ``limit`` GiB above the picture, PyTorch and a ResNet-18
    included; dense masks alone would take 0.03 GiB each."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE, how], capture_output=True, text=True, check=True
    )
    count, peak = map(int, done.stdout.split())
    assert count == instances
    assert peak < limit * 2**30, f"{peak / 2**20:.0f} MiB"
