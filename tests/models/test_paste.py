"""Pasted masks, compared with grid_sample, torchvision and a paste of the whole image at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from batches import polygon_of_a_star, random_boxes
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from autotimm.coco import masks
from autotimm.models import paste
from autotimm.models.mask_head import RoIs, mask_targets


def test_soft_targets_paste_back_to_the_mask_better_than_rounded_ones() -> None:
    height, width = 256, 320
    rle = masks.to_rle([polygon_of_a_star(150.3, 120.8, 90.0)], height, width)
    truth = torch.from_numpy(masks.decode(rle)).bool()
    box = torch.tensor(masks.box(rle), dtype=torch.float32)
    crop = torch.from_numpy(masks.crop(rle, np.eye(3)[:2], box.tolist()))
    first = torch.zeros(1, dtype=torch.int64)
    rois = RoIs(box[None], first, first, torch.ones(1, dtype=torch.bool))
    soft = mask_targets(crop[None, None], box[None, None], rois, 28)

    def iou(target: torch.Tensor) -> float:
        pasted = paste.dense(target, box[None], height, width)[0].bool()
        return ((pasted & truth).sum() / (pasted | truth).sum()).item()

    assert iou(soft) > 0.97
    assert iou(soft) > iou((soft >= 0.5).float()) + 0.005


def test_paste_equals_grid_sample_and_is_near_torchvision() -> None:
    g = torch.Generator().manual_seed(2)
    boxes = random_boxes(12, 200, 300, g, smallest=20.0) + torch.tensor([-9.0, -7.0, 6.0, 8.0])
    coarse = torch.rand(12, 1, 5, 5, generator=g)
    probabilities = F.interpolate(coarse, (28, 28), mode="bicubic").clamp(0, 1)
    got = paste.dense(probabilities[:, 0], boxes, 200, 300)
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
    assert (both / either.clamp(min=1)).mean() > 0.93  # torchvision rounds boxes to whole pixels


def test_pasting_in_chunks_changes_nothing(monkeypatch) -> None:
    g = torch.Generator().manual_seed(3)
    boxes = random_boxes(9, 64, 80, g)
    probabilities = torch.rand(9, 28, 28, generator=g)
    whole = paste.dense(probabilities, boxes, 64, 80)
    monkeypatch.setattr(paste, "PASTE_BYTES", 4 * 64 * 80 * 2)
    seen = []
    paste_one = paste._paste
    monkeypatch.setattr(
        paste, "_paste", lambda *given: seen.append(len(given[0])) or paste_one(*given)
    )
    assert torch.equal(paste.dense(probabilities, boxes, 64, 80), whole)
    monkeypatch.setattr(paste, "PASTE_BYTES", 1)
    assert torch.equal(paste.dense(probabilities, boxes, 64, 80), whole)
    assert seen == [2, 2, 2, 2, 1] + [1] * 9
    assert paste.dense(probabilities[:0], boxes[:0], 64, 80).shape == (0, 64, 80)
    assert paste.encode(probabilities[:0], boxes[:0], 64, 80) == []


@pytest.mark.parametrize("seed", range(5))
def test_windows_contain_every_pixel_of_the_masks(seed: int) -> None:
    """With boxes at whole and half pixels, whose edges depend on rounding, and with masks of
    probability 1, which extend to the edges of their boxes."""
    g = torch.Generator().manual_seed(seed)
    boxes = random_boxes(40, 90, 120, g, smallest=0.5)
    boxes[10:20] = boxes[10:20].round()
    boxes[20:30] = (boxes[20:30] * 2).round() / 2
    boxes[30:] += torch.tensor([-30.0, -20.0, 25.0, 20.0]) * torch.rand(10, 1, generator=g)
    boxes[0] = torch.tensor([0.0, 0.0, 120.0, 90.0])
    boxes[1] = torch.tensor([-10.0, -10.0, 130.0, 100.0])
    probabilities = torch.rand(40, 28, 28, generator=g)
    probabilities[::2] = 1.0
    whole = paste._paste(probabilities, boxes, (0, 90), (0, 120))
    assert torch.equal(paste.dense(probabilities, boxes, 90, 120), whole)
    rles = paste.encode(probabilities, boxes, 90, 120)
    assert rles == [masks.encode(mask.numpy()) for mask in whole]
    probabilities[1] = 1.0
    (all_of_it,) = paste.encode(probabilities[1:2], boxes[1:2], 90, 120)
    assert masks.area(all_of_it) == 90 * 120


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (53, 1), (37, 53), (91, 120)])
def test_encodings_are_pycocotools_of_the_pasted_masks(
    size: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of boxes that leave the image or are far outside of it, of a pixel or less, and of
    masks with nothing or everything in them."""
    height, width = size
    g = torch.Generator().manual_seed(height)
    corner = torch.rand(30, 2, generator=g) * torch.tensor([width, height])
    boxes = torch.cat([corner, corner + torch.rand(30, 2, generator=g) * max(size)], 1)
    boxes[:6, 2:] = boxes[:6, :2].floor() + 1
    boxes[:6, :2] = boxes[:6, :2].floor()
    boxes[6:10, 2:] = boxes[6:10, :2] + 0.2
    boxes[10:16] -= boxes[10:16, 2:].repeat(1, 2) * torch.rand(6, 1, generator=g)
    boxes[16] = torch.tensor([-9.0, -9.0, width + 9.0, height + 9.0])
    boxes[17] = torch.tensor([-400.0, 3.0, -300.0, 9.0])
    boxes[18] = torch.tensor([width + 50.0, height + 50.0, width + 60.0, height + 60.0])
    probabilities = torch.rand(30, 28, 28, generator=g)
    probabilities[19], probabilities[[16, 20, 21]] = 0.0, 1.0
    probabilities = probabilities.to(dtype)
    pasted = paste.dense(probabilities, boxes, height, width).numpy()
    wanted = [coco_mask.encode(np.asfortranarray(mask)) for mask in pasted]
    texts = [one["counts"].decode() for one in wanted]
    for pixels in (paste.STRIP_PIXELS, 16 * height + 1):  # some masks in several strips
        monkeypatch.setattr(paste, "STRIP_PIXELS", pixels)
        rles = paste.encode(probabilities, boxes, height, width)
        assert [one["counts"] for one in rles] == texts
        assert all(one["size"] == [height, width] for one in rles)
    assert paste.encode(probabilities[:0], boxes[:0], height, width) == []


def test_boxes_of_16_bits_lose_no_pixel_of_an_image() -> None:
    boxes = torch.tensor([[300.0, 10.0, 700.0, 160.0]]).bfloat16()  # which has no 601
    probabilities = torch.ones(1, 28, 28).bfloat16()
    (rle,) = paste.encode(probabilities, boxes, 200, 601)
    assert masks.box(rle) == [300, 10, 601, 160]
    assert np.array_equal(masks.decode(rle), paste.dense(probabilities, boxes, 200, 601)[0].numpy())


def test_masks_are_pasted_alike_under_autocast() -> None:
    g = torch.Generator().manual_seed(4)
    boxes = random_boxes(9, 200, 300, g)
    probabilities = torch.rand(9, 28, 28, generator=g)
    plain = paste.dense(probabilities, boxes, 200, 300)
    with torch.autocast("cpu", torch.bfloat16):
        low = paste.dense(probabilities, boxes, 200, 300)
    assert torch.equal(plain, low)
