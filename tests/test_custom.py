"""A user's albumentations pipeline: the pixels themselves are the truth for boxes and masks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotimm import masks
from autotimm.data.custom import custom_sample
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.data.synthetic import make_dataset
from autotimm.data.transforms import Sample
from autotimm.structures import InputError, Record

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network on import
A = pytest.importorskip("albumentations")
from albumentations.pytorch import ToTensorV2  # noqa: E402

GUIDE = A.Compose(
    [
        A.RandomScale(scale_limit=0.1),
        A.HorizontalFlip(p=0.5),
        A.ColorJitter(brightness=0.2, contrast=0.2),
        A.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ToTensorV2(),
    ],
    bbox_params=A.BboxParams(format="coco", label_fields=["labels"]),
)


def scene() -> tuple[np.ndarray, Record]:
    """Three rectangles, each of one colour, and a crowd, in an image of 120 x 80 pixels."""
    image = np.zeros((80, 120, 3), np.uint8)
    annotations = []
    for n, (x1, y1, x2, y2) in enumerate([(4, 6, 40, 30), (60, 10, 100, 70), (0, 50, 30, 80)]):
        mask = np.zeros((80, 120), np.uint8)
        mask[y1:y2, x1:x2] = 1
        image[mask > 0] = 60 * (n + 1)
        annotations.append(
            {
                "id": n,
                "category_id": n,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(mask.sum()),
                "iscrowd": 0,
                "segmentation": masks.encode(mask),
            }
        )
    annotations.append(annotations[0] | {"id": 9, "iscrowd": 1})
    record: Any = {"image_id": 1, "file_name": "a.jpg", "width": 120, "height": 80}
    return image, record | {"annotations": annotations}


def made(transforms: Any, seed: int = 0, **options: Any) -> Sample:
    image, record = scene()
    return custom_sample(
        image,
        record,
        {0: 0, 1: 1, 2: 2},
        (96, 96),
        transforms,
        np.random.default_rng(seed),
        **({"resize": "letterbox", "fill": (1, 2, 3), "with_masks": True} | options),
    )


@pytest.mark.parametrize("kind", ["coco", "pascal_voc", "albumentations", "yolo", None])
def test_boxes_masks_and_labels_stay_together(kind: str | None) -> None:
    for fields in (["labels"], ["labels", "more"], None):
        boxes = A.BboxParams(format=kind, label_fields=fields) if kind else None
        steps = [
            A.HorizontalFlip(p=0.5),
            A.RandomScale(scale_limit=(-0.4, 0.8), p=1, interpolation=0),
            A.RandomCrop(60, 60, pad_if_needed=True, p=0.5),
        ]
        transforms = A.Compose(steps, bbox_params=boxes)
        shown = 0
        for seed in range(25):
            sample = made(transforms, seed)
            grey = sample.image[..., 0]
            for box, label, crop in zip(sample.boxes, sample.labels, sample.masks, strict=True):
                x1, y1, x2, y2 = box.round().astype(int)
                rows, columns = np.nonzero(np.abs(grey.astype(int) - 60 * (label + 1)) < 3)
                tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                assert np.abs(np.subtract(tight, (x1, y1, x2, y2))).max() <= 1
                assert crop.mean() > 0.9  # a rectangle fills its box
                shown += 1
        assert shown > 30


def test_the_seed_decides_the_pipeline() -> None:
    first, again = ([made(GUIDE, seed) for seed in range(12)] for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.boxes, other.boxes)
    assert len({sample.image.tobytes() for sample in first}) >= 8
    flips = A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)])
    looks = {made(flips, seed).image.tobytes() for seed in range(30)}
    assert len(looks) == 4  # each step has a chance of its own


def test_a_box_that_the_pipeline_drops_is_dropped() -> None:
    keep = A.Compose(
        [A.Crop(0, 0, 60, 64)],  # of 96 x 64: a third of the second rectangle's box is left
        bbox_params=A.BboxParams(format="coco", label_fields=["labels"], min_visibility=0.5),
    )
    assert made(keep).labels.tolist() == [0, 2]
    assert made(A.Compose([A.Crop(0, 0, 60, 64)])).labels.tolist() == [0, 1, 2]


def test_fill_and_types() -> None:
    plain = made(A.Compose([A.NoOp()]), with_masks=False)
    assert plain.image.dtype == np.uint8
    assert plain.masks is None
    assert plain.image[0, 0].tolist() == [1, 2, 3]  # 96 x 64 pixels in the middle of 96 x 96
    assert made(GUIDE).image.dtype == np.float32


@pytest.mark.parametrize(
    ("transforms", "match"),
    [
        (lambda image, masks: {"image": image[..., 0], "masks": masks}, "not as RGB"),
        (lambda image, masks: {"image": image[:9], "masks": masks}, "must transform masks"),
        (lambda image, masks: {"image": image, "masks": masks[1:]}, "and drop none"),
    ],
)
def test_other_pipelines_are_refused(transforms: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        made(transforms)


def test_the_guides_pipeline_in_the_data_module(tmp_path: Path) -> None:
    make_dataset(tmp_path / "coco", train=6, val=2, size=64)

    def batches(workers: int) -> list[dict[str, Any]]:
        data = InstanceSegmentationDataModule(
            tmp_path / "coco",
            image_size=96,
            batch_size=2,
            num_workers=workers,
            custom_train_transforms=GUIDE,
        )
        found = list(data.train_dataloader())
        data.teardown()
        return [data.on_after_batch_transfer(batch, 0) for batch in found]

    truth = batches(0)
    assert [b["image"].shape for b in truth] == [(2, 3, 96, 96)] * 3
    for a, b in zip(truth, batches(2), strict=True):
        assert a["image"].dtype == torch.float32
        for key in ("image", "boxes", "labels", "masks"):
            assert torch.equal(a[key], b[key])
    with pytest.raises(InputError, match="custom_train_transforms is 'flip'"):
        InstanceSegmentationDataModule(tmp_path / "coco", custom_train_transforms="flip")
