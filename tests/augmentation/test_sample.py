"""Samples: boxes, masks and labels lie on the pixels that they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from canvas import FILL, picture

from autotimm.augmentation.presets import (
    Augmentation,
)
from autotimm.augmentation.sample import evaluation_sample, training_sample
from autotimm.augmentation.transforms import render
from autotimm.coco import index as coco
from autotimm.coco import masks
from autotimm.images.decode import DataError, decode_image
from autotimm.structures import InputError, Record

LABELS = {3: 0, 5: 1}


def shape_record(mask: np.ndarray, iscrowd: int = 0, category: int = 5) -> Record:
    rle = masks.encode(mask)
    x1, y1, x2, y2 = masks.box(rle)
    return {
        "image_id": 1,
        "file_name": "a.jpg",
        "width": mask.shape[1],
        "height": mask.shape[0],
        "annotations": [
            {
                "id": 1,
                "category_id": category,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(mask.sum()),
                "iscrowd": iscrowd,
                "segmentation": rle,
            }
        ],
    }


def test_training_targets_lie_on_the_pixels() -> None:
    """A white object on black: the canvas itself gives the true box and mask."""
    y, x = np.mgrid[:120, :160]
    mask = ((x - 70) ** 2 / 900 + (y - 60) ** 2 / 1600 < 1) & ~((x > 60) & (y > 70))
    image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    kept = 0
    for seed in range(60):
        sample = training_sample(
            image,
            shape_record(mask),
            LABELS,
            (128, 96),
            resize="letterbox",
            augmentation=Augmentation(flip=0.5, scale=(0.5, 2.5)),
            rng=np.random.default_rng(seed),
            fill=(0, 0, 0),
            with_masks=True,
        )
        truth = sample.image[..., 0] > 127
        if not len(sample.labels):
            assert truth.mean() < 0.02
            continue
        kept += 1
        assert sample.labels.tolist() == [1]
        rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
        tight = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        x1, y1, x2, y2 = sample.boxes[0]
        assert np.abs(sample.boxes[0] - tight).max() <= 1.6
        assert sample.masks is not None
        grid = cv2.resize(
            sample.masks[0],
            (round(x2) - round(x1), round(y2) - round(y1)),
            interpolation=cv2.INTER_AREA,
        )
        pasted = np.zeros_like(truth)
        pasted[round(y1) : round(y2), round(x1) : round(x2)] = grid > 0
        assert (pasted & truth).sum() / (pasted | truth).sum() > 0.9
    assert kept > 40


def test_colours_are_varied_in_the_picture_alone() -> None:
    """Padding has the colour that it has in evaluation."""
    image = picture()
    for seed in range(5):
        sample = training_sample(
            image,
            shape_record(np.ones((40, 60), bool)),
            LABELS,
            (128, 128),
            resize="letterbox",
            augmentation=Augmentation(scale=(0.5, 0.5), brightness=1.0),
            rng=np.random.default_rng(seed),
            fill=FILL,
            with_masks=False,
        )
        assert sample.placement is not None
        plain = render(image, sample.placement, (128, 128), FILL)
        x1, y1, x2, y2 = sample.placement.place
        assert not np.array_equal(sample.image[y1:y2, x1:x2], plain[y1:y2, x1:x2])
        sample.image[y1:y2, x1:x2] = plain[y1:y2, x1:x2]
        assert np.array_equal(sample.image, plain)


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_training_and_evaluation_interpolate_alike(how: str) -> None:
    image, record = picture(), shape_record(np.ones((40, 60), bool))
    given = (image, record, LABELS, (80, 120))
    options: dict[str, Any] = {"resize": "letterbox", "fill": FILL, "with_masks": False}
    rng = np.random.default_rng(0)
    trained = training_sample(*given, Augmentation(), rng, interpolation=how, **options)
    evaluated = evaluation_sample(*given, interpolation=how, **options)
    assert np.array_equal(trained.image, evaluated.image)
    plain = evaluation_sample(*given, **options)
    assert np.array_equal(trained.image, plain.image) == (how == "bilinear")


def test_an_object_whose_seen_part_is_empty_is_dropped() -> None:
    """The box overlaps the window, the object does not."""
    mask = np.zeros((40, 80), bool)
    mask[:8, :] = mask[:, :8] = True
    record = shape_record(mask)
    for seed in range(30):
        sample = training_sample(
            np.repeat(mask[..., None] * np.uint8(255), 3, axis=2),
            record,
            LABELS,
            (64, 64),
            resize="letterbox",
            augmentation=Augmentation(scale=(3, 3)),
            rng=np.random.default_rng(seed),
            fill=(0, 0, 0),
            with_masks=False,
        )
        assert sample.masks is None
        assert len(sample.labels) == (sample.image > 127).any()


def test_crowd_is_no_training_target_and_unknown_categories_are_named() -> None:
    mask = np.ones((20, 20), bool)
    options: dict[str, Any] = {"resize": "letterbox", "fill": FILL, "with_masks": True}
    image = np.zeros((20, 20, 3), np.uint8)
    crowd = evaluation_sample(image, shape_record(mask, iscrowd=1), LABELS, (32, 32), **options)
    assert crowd.boxes.shape == (0, 4)
    assert crowd.masks is not None
    assert crowd.masks.shape == (0, 112, 112)
    record = shape_record(mask)
    record["annotations"][0]["ignore"] = 1
    assert evaluation_sample(image, record, LABELS, (32, 32), **options).boxes.shape == (0, 4)
    with pytest.raises(InputError, match="category id 9") as error:
        evaluation_sample(image, shape_record(mask, category=9), LABELS, (32, 32), **options)
    assert not isinstance(error.value, DataError)  # a DataError would be skipped


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_evaluation_boxes_map_back_exactly(resize: str, shared_data: Path) -> None:
    index = coco.load(
        shared_data / "coco_mini/annotations/instances_val2017.json",
        shared_data / "coco_mini/val2017",
    )
    for i in range(10):
        record = index.record(i)
        image = decode_image(index.image_path(i).read_bytes(), record["width"], record["height"])
        sample = evaluation_sample(
            image,
            record,
            coco.label_of(index.categories),
            (416, 512),
            resize=resize,
            fill=FILL,
            with_masks=False,
        )
        assert sample.offset == (0, 0)
        back = (sample.boxes.reshape(-1, 2, 2) / sample.scale).reshape(-1, 4)
        truth = [a["bbox"] for a in record["annotations"] if not a["iscrowd"]]
        corners = np.array([[x, y, x + w, y + h] for x, y, w, h in truth]).reshape(-1, 4)
        corners = corners.clip(0, [record["width"], record["height"]] * 2)
        big = ((corners[:, 2:] - corners[:, :2]) * sample.scale).min(axis=1, initial=9) >= 1
        assert np.allclose(back, corners[big], atol=0.01)
