"""The data module's path delivers what a plain one does: PIL, cv2 and dense masks of pycocotools.

Over images of coco_mini, before a release all of them: pixels, boxes, the targets that the mask
head makes of the crops, and what a network would score that said exactly what it is told.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from autotimm.augmentation.presets import Augmentation
from autotimm.augmentation.sample import Sample, evaluation_sample, training_sample
from autotimm.coco import index as coco
from autotimm.evaluation.coco_eval import evaluate, to_results
from autotimm.images.decode import decode_image
from autotimm.models.mask_head import RoIs, mask_targets
from autotimm.models.restore import restore
from autotimm.structures import Record

CANVAS, CELLS = (640, 640), 28
Split = tuple[COCO, coco.CocoIndex, Path]
every_nth = pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.release)])


@pytest.fixture(scope="module")
def splits(shared_data: Path) -> list[Split]:
    found = []
    for name in ("train2017", "val2017"):
        folder = shared_data / "coco_mini" / name
        file = shared_data / "coco_mini/annotations" / f"instances_{name}.json"
        with contextlib.redirect_stdout(io.StringIO()):
            found.append((COCO(str(file)), coco.load(file, folder), folder))
    return found


def images(splits: list[Split], every: int) -> Iterator[tuple[COCO, Path, Record, dict[int, int]]]:
    for truth, index, folder in splits:
        for i in range(0, len(index), every):
            record = index.record(i)
            yield truth, folder / record["file_name"], record, coco.label_of(index.categories)


def plain_targets(dense: list[np.ndarray], boxes: np.ndarray) -> np.ndarray:
    """Of masks on the canvas, the share of each cell of each box that is covered: 4 x 4 samples."""
    grid = (np.arange(4 * CELLS) + 0.5) / (4 * CELLS)
    found = [np.zeros((0, CELLS, CELLS))]
    for mask, (x1, y1, x2, y2) in zip(dense, boxes, strict=True):
        rows = np.floor(y1 + grid * (y2 - y1)).astype(int).clip(0, mask.shape[0] - 1)
        columns = np.floor(x1 + grid * (x2 - x1)).astype(int).clip(0, mask.shape[1] - 1)
        found.append(mask[np.ix_(rows, columns)].reshape(1, CELLS, 4, CELLS, 4).mean((2, 4)))
    return np.concatenate(found)


def our_targets(sample: Sample, cells: int = CELLS) -> np.ndarray:
    n = len(sample.labels)
    boxes, first = torch.from_numpy(sample.boxes), torch.zeros(n, dtype=torch.int64)
    rois = RoIs(boxes, first, torch.arange(n), torch.ones(n, dtype=torch.bool))
    return mask_targets(torch.from_numpy(sample.masks)[None], boxes[None], rois, cells).numpy()


def ious(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    one, other = found >= 0.5, truth >= 0.5
    union = (one | other).sum((1, 2))
    return np.where(union, (one & other).sum((1, 2)) / np.maximum(union, 1), 1.0)


@every_nth
def test_pixels_and_boxes(splits: list[Split], every: int) -> None:
    for _, path, record, labels in images(splits, every):
        width, height = record["width"], record["height"]
        with Image.open(path) as file:
            plain = np.asarray(file.convert("RGB"))
        found = evaluation_sample(
            decode_image(path.read_bytes(), width, height),
            record,
            labels,
            CANVAS,
            resize="letterbox",
            fill=(124, 116, 104),
            with_masks=False,
        )
        scale = min(640 / width, 640 / height)
        size = round(width * scale), round(height * scale)
        expected = np.full((640, 640, 3), (124, 116, 104), np.uint8)
        expected[: size[1], : size[0]] = cv2.resize(plain, size, interpolation=cv2.INTER_LINEAR)
        assert np.abs(found.image.astype(int) - expected).max() <= 1
        boxes = np.array([a["bbox"] for a in record["annotations"] if not a["iscrowd"]])
        boxes = boxes.reshape(-1, 4)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        corners = corners.clip(0, [width, height] * 2)
        corners *= np.array([size[0] / width, size[1] / height] * 2)
        corners = corners[(corners[:, 2:] - corners[:, :2]).min(axis=1, initial=9) >= 1]
        np.testing.assert_allclose(found.boxes, corners, rtol=1e-6, atol=1e-4)


@every_nth
def test_mask_targets(splits: list[Split], every: int) -> None:
    """The masks of an image resized to the canvas, as a plain loader hands them over."""
    resized, own_size = [], []
    for truth, _, record, labels in images(splits, every):
        blank = np.zeros((record["height"], record["width"], 3), np.uint8)
        sample = evaluation_sample(
            blank, record, labels, CANVAS, resize="letterbox", fill=(0, 0, 0), with_masks=True
        )
        if not len(sample.labels):
            continue
        scale = np.array(sample.scale)
        annotations = [
            a
            for a in truth.imgToAnns[record["image_id"]]
            if not a["iscrowd"] and (np.array(a["bbox"][2:]) * scale).min() >= 1
        ]
        assert len(annotations) == len(sample.labels)
        dense = [truth.annToMask(a).astype(np.float32) for a in annotations]
        size = tuple(int(n) for n in np.rint(scale * (record["width"], record["height"])))
        bilinear = [cv2.resize(m, size, interpolation=cv2.INTER_LINEAR) >= 0.5 for m in dense]
        ours = our_targets(sample)
        resized.append(ious(ours, plain_targets(bilinear, sample.boxes)))
        own_size.append(ious(ours, plain_targets(dense, sample.boxes / np.tile(scale, 2))))
    assert len(np.concatenate(resized)) == {1: 1350, 4: 340}[every]
    print(f"mean IoU {np.concatenate(resized).mean():.4f}, {np.concatenate(own_size).mean():.4f}")
    assert np.concatenate(resized).mean() >= 0.99
    assert np.concatenate(own_size).mean() >= 0.999  # before the resize blurs the outline


@every_nth
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_mask_targets_of_augmented_images(splits: list[Split], flip: float, every: int) -> None:
    """One instance of each image, moved, scaled and mirrored: its box, taken back, on its mask."""
    rng = np.random.default_rng(0)
    found = []
    for truth, _, record, labels in images(splits, every):
        annotations = [a for a in record["annotations"] if not a["iscrowd"]]
        if not annotations:
            continue
        one = annotations[len(annotations) // 2]
        sample = training_sample(
            np.zeros((record["height"], record["width"], 3), np.uint8),
            record | {"annotations": [one]},
            labels,
            CANVAS,
            Augmentation(flip=flip, scale=(0.8, 1.25)),
            rng,
            resize="letterbox",
            fill=(0, 0, 0),
            with_masks=True,
        )
        dense = truth.annToMask(truth.anns[one["id"]])
        scale, offset = np.array(sample.scale), np.array(sample.offset)
        if flip:  # the same map, of the mirrored mask
            dense, offset[0] = dense[:, ::-1], offset[0] - record["width"] * scale[0]
        boxes = (sample.boxes - np.tile(offset, 2)) / np.tile(scale, 2)
        found.append(ious(our_targets(sample), plain_targets([dense] * len(boxes), boxes)))
    assert len(np.concatenate(found)) > 120 / every
    assert np.concatenate(found).mean() >= 0.999


@pytest.mark.parametrize(
    ("cells", "least"), [(28, 0.995), pytest.param(56, 0.9995, marks=pytest.mark.release)]
)
def test_what_a_perfect_network_scores(splits: list[Split], cells: int, least: float) -> None:
    """To the canvas, through the mask targets and back to the original pixels: what that costs."""
    _, index, folder = splits[1]
    labels, ids = coco.label_of(index.categories), [c.id for c in index.categories]
    results = []
    for i in range(len(index)):
        record = index.record(i)
        height, width = record["height"], record["width"]
        blank = np.zeros((height, width, 3), np.uint8)
        sample = evaluation_sample(
            blank, record, labels, CANVAS, resize="letterbox", fill=(0, 0, 0), with_masks=True
        )
        found = restore(
            {
                "boxes": torch.from_numpy(sample.boxes),
                "labels": torch.from_numpy(sample.labels),
                "scores": torch.ones(len(sample.labels)),
                "masks": torch.from_numpy(our_targets(sample, cells)),
            },
            torch.tensor(sample.scale),
            torch.tensor(sample.offset),
            height,
            width,
        )
        results += to_results(found, record["image_id"], ids)
    truth = folder.parent / "annotations" / f"instances_{folder.name}.json"
    box, mask = (evaluate(truth, results, kind)["AP"] for kind in ("bbox", "segm"))
    print(f"box AP {box:.4f}, mask AP {mask:.4f}")
    assert box > 0.9995
    assert mask > least
