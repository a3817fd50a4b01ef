"""A user's albumentations pipeline: the pixels themselves are the truth for boxes and masks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from autotimm.augmentation import pipeline_checks
from autotimm.augmentation.custom import custom_sample
from autotimm.augmentation.presets import Augmentation
from autotimm.augmentation.sample import Sample
from autotimm.augmentation.transforms import fit, render
from autotimm.coco import masks
from autotimm.data.collate import collate, finish
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.data.synthetic import make_dataset
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


BOXES = A.BboxParams(format="coco", label_fields=["labels"])
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
    annotations.append(annotations[0] | {"id": 10, "ignore": 1})
    record: Any = {"image_id": 1, "file_name": "a.jpg", "width": 120, "height": 80}
    return image, record | {"annotations": annotations}


def made(
    transforms: Any,
    seed: int = 0,
    given: tuple[np.ndarray, Record] | None = None,
    canvas: tuple[int, int] = (96, 96),
    **options: Any,
) -> Sample:
    image, record = given or scene()
    return custom_sample(
        image,
        record,
        {0: 0, 1: 1, 2: 2},
        canvas,
        transforms,
        np.random.default_rng(seed),
        **({"resize": "letterbox", "fill": (1, 2, 3), "with_masks": True} | options),
    )


@pytest.mark.parametrize("kind", ["coco", "pascal_voc", "albumentations", "yolo"])
def test_boxes_masks_and_labels_stay_together(kind: str) -> None:
    for fields in (["labels"], ["what", "more"], None):
        boxes = A.BboxParams(format=kind, label_fields=fields)
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
                # Pixels of an edge, of mixed colour, are the mask's from a half on.
                assert np.abs(np.subtract(tight, (x1, y1, x2, y2))).max() <= 2
                assert crop.mean() > 0.9  # a rectangle fills its box
                shown += 1
        assert shown > 30


def test_the_seed_decides_the_pipeline() -> None:
    first, again = ([made(GUIDE, seed) for seed in range(12)] for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.boxes, other.boxes)
    assert len({sample.image.tobytes() for sample in first}) >= 8
    flips = A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)], bbox_params=BOXES)
    looks = {made(flips, seed).image.tobytes() for seed in range(30)}
    assert len(looks) == 4  # each step has a chance of its own


def test_a_mask_lies_where_the_smaller_picture_has_it() -> None:
    """A quarter of a pixel, not most of one, to any side: photographs are shrunk the most."""
    image, record = np.zeros((400, 400, 3), np.uint8), scene()[1]
    off = []
    for start in range(100, 116):
        image[:], mask = 0, np.zeros((400, 400), np.uint8)
        mask[start : start + 90, start : start + 130] = 1
        image[mask > 0] = 250
        one = record["annotations"][0] | {
            "bbox": [start, start, 130, 90],
            "segmentation": masks.encode(mask),
        }
        given: Any = record | {"width": 400, "height": 400, "annotations": [one]}
        sample = made(A.Compose([], bbox_params=BOXES), given=(image, given), canvas=(96, 96))
        rows, columns = np.nonzero(sample.image[..., 0] > 125)
        seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        off.append(sample.boxes[0] - seen)
    assert np.abs(np.mean(off, axis=0)).max() < 0.25


def test_a_box_that_the_pipeline_drops_is_dropped() -> None:
    keep = A.Compose(
        [A.Crop(0, 0, 60, 64)],  # of 96 x 64: a third of the second rectangle's box is left
        bbox_params=A.BboxParams(format="coco", label_fields=["labels"], min_visibility=0.5),
    )
    assert made(keep).labels.tolist() == [0, 2]
    assert made(A.Compose([A.Crop(0, 0, 60, 64)], bbox_params=BOXES)).labels.tolist() == [0, 1, 2]
    small = A.BboxParams(format="yolo", label_fields=["labels"], min_area=600)
    assert made(A.Compose([A.NoOp()], bbox_params=small)).labels.tolist() == [1]


def test_fill_and_types() -> None:
    plain = made(A.Compose([A.NoOp()], bbox_params=BOXES), with_masks=False)
    assert plain.image.dtype == np.uint8
    assert plain.masks is None
    assert plain.image.shape == (96, 96, 3)
    assert (plain.image[64:] == (1, 2, 3)).all()  # 96 x 64 pixels at the top
    assert made(GUIDE).image.dtype == np.float32
    unlike = A.Compose([A.Normalize(MEAN, STD)], bbox_params=BOXES)
    tensor = A.Compose([A.Normalize(MEAN, STD), ToTensorV2()], bbox_params=BOXES)
    assert np.array_equal(made(unlike).image, made(tensor).image)
    assert (made(unlike).image[64:] == 0).all()
    as_tensor = A.Compose([ToTensorV2()], bbox_params=BOXES)
    assert np.array_equal(made(as_tensor).image, plain.image)


def test_the_resize_before_it_interpolates_as_in_evaluation() -> None:
    nothing = A.Compose([], bbox_params=BOXES)
    image, _ = scene()
    for how in ("bilinear", "bicubic"):
        sample = made(nothing, canvas=(160, 256), interpolation=how)
        placed = fit(120, 80, (160, 256), "letterbox")
        assert np.array_equal(sample.image, render(image, placed, (160, 256), (1, 2, 3), how))


def test_what_comes_out_larger_is_not_cropped() -> None:
    grown = made(A.Compose([A.RandomScale((0.5, 0.5), p=1, interpolation=0)], bbox_params=BOXES))
    assert grown.image.shape == (96, 160, 3)  # 96 x 144 in steps of 64
    assert grown.boxes[1].tolist() == [72, 12, 120, 84]
    small = made(A.Compose([A.NoOp()], bbox_params=BOXES))
    batch = finish(collate([small, grown], [False, False]))
    assert batch["image"].shape == (2, 3, 96, 160)
    assert (batch["image"][0, :, :, 96:].permute(1, 2, 0) == torch.tensor([1, 2, 3])).all()
    assert np.array_equal(batch["image"][1].permute(1, 2, 0), grown.image)
    assert np.array_equal(batch["image"][0, :, :, :96].permute(1, 2, 0), small.image)


def test_who_resizes_by_themselves_get_the_image_as_it_is() -> None:
    sizes = []

    class Sees(A.NoOp):
        def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
            sizes.append(img.shape[:2])
            return img

    def seen(*steps: Any, canvas: tuple[int, int] = (96, 96)) -> tuple[int, int]:
        made(A.Compose([Sees(p=1), *steps], bbox_params=BOXES), canvas=canvas)
        return sizes[-1]

    assert seen() == seen(A.RandomScale(p=1)) == seen(A.Resize(50, 50, p=0.5)) == (64, 96)
    assert seen(A.Resize(50, 50)) == seen(A.Sequential([A.LongestMaxSize(50)], p=1)) == (80, 120)
    assert seen(A.OneOf([A.Resize(50, 50), A.LongestMaxSize(90)], p=1)) == (80, 120)
    assert seen(A.OneOf([A.Resize(50, 50), A.HorizontalFlip()], p=1)) == (64, 96)
    assert seen(A.Resize(50, 50), canvas=(32, 32)) == (43, 64)  # twice the canvas at most


@pytest.mark.parametrize("count", [0, 1, 600])
def test_any_number_of_instances(count: int) -> None:
    """albumentations stacks masks: none cannot be stacked, and OpenCV takes 512 channels."""
    image, record = scene()
    record["annotations"] = [record["annotations"][0] | {"id": n} for n in range(count)]
    steps = [A.Resize(50, 70), A.Rotate(p=1), A.RandomScale(p=1), *GUIDE.transforms]
    transforms = A.Compose(steps, bbox_params=BOXES)
    sample = made(transforms, given=(image, record))
    assert sample.boxes.shape == (count, 4)
    assert sample.masks.shape == (count, 112, 112)


def test_an_image_without_instances_passes_a_step_that_looks_at_masks() -> None:
    image, record = scene()
    steps = [A.CropNonEmptyMaskIfExists(40, 40, p=1)]
    empty: Any = record | {"annotations": []}
    sample = made(A.Compose(steps, bbox_params=BOXES), given=(image, empty))
    assert sample.boxes.shape == (0, 4)


def test_a_crop_larger_than_the_image_says_what_to_change() -> None:
    with pytest.raises(InputError, match=r"\(90, 90\) vs \(64, 96\).*pad_if_needed=True"):
        made(A.Compose([A.RandomCrop(90, 90)], bbox_params=BOXES))


@pytest.mark.parametrize(
    ("out", "match"),
    [
        (lambda image, masks: {"image": image[..., 0], "masks": masks}, "not as RGB"),
        (lambda image, masks: {"image": image[:9], "masks": masks}, "must transform masks"),
        (lambda image, masks: {"image": image, "masks": masks[1:]}, "and drop none"),
        (lambda image, masks: {"image": image / 255, "masks": masks}, "add A.Normalize"),
    ],
)
def test_what_comes_out_is_checked(out: Any, match: str) -> None:
    class Odd(A.Compose):
        def __call__(self, **given: Any) -> dict[str, Any]:
            return super().__call__(**given) | out(given["image"], given["masks"])

    with pytest.raises(InputError, match=match):
        made(Odd([A.NoOp()], bbox_params=BOXES))


@pytest.mark.parametrize(
    ("transforms", "match"),
    [
        (lambda: "flip", "is 'flip', but must be an albumentations Compose"),
        (lambda: lambda image: image, "is a function, but must be an albumentations Compose"),
        (lambda: A.Compose([A.HorizontalFlip()]), "has no bbox_params"),
        (
            lambda: A.Compose([], bbox_params=BOXES, keypoint_params=A.KeypointParams("xy")),
            "leave keypoint_params out",
        ),
        (lambda: A.Compose([A.HorizontalFlip()], bbox_params=BOXES, p=0.5), "must have p=1"),
        (
            lambda: A.Compose([A.OneOf([A.OverlayElements()])], bbox_params=BOXES),
            "OverlayElements needs overlay_metadata",
        ),
        (lambda: A.Compose([A.CenterCrop3D((1, 1, 1))], bbox_params=BOXES), "does not move boxes"),
        (
            lambda: A.Compose([A.Sequential([A.Normalize()], p=0.5)], bbox_params=BOXES),
            "Normalize is only applied by chance",
        ),
    ],
)
def test_pipelines_that_cannot_work_are_refused(transforms: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        pipeline_checks.check(transforms())


def test_steps_that_look_at_the_labels_are_not_refused() -> None:
    steps = [A.RandomSizedBBoxSafeCrop(9, 9), A.Equalize()]
    pipeline_checks.check(A.Compose(steps, bbox_params=BOXES))


def test_what_a_step_fills_is_no_part_of_an_object() -> None:
    """255 is what semantic segmentation ignores."""
    for fill in (0, 255):
        steps = [A.PadIfNeeded(160, 160, position="top_left", fill_mask=fill)]
        sample = made(A.Compose(steps, bbox_params=BOXES))
        plain = made(A.Compose([A.NoOp()], bbox_params=BOXES))
        assert np.array_equal(sample.boxes, plain.boxes)
        assert np.array_equal(sample.masks, plain.masks)
    one = A.Compose([A.PadIfNeeded(160, 160, fill_mask=1)], bbox_params=BOXES)
    with pytest.raises(InputError, match="PadIfNeeded has fill_mask=1"):
        pipeline_checks.check(one)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([A.CropNonEmptyMaskIfExists(400, 400)], "ValueError: .*larger than image"),
        ([ToTensorV2(), A.Normalize(MEAN, STD)], "AttributeError"),
    ],
)
def test_a_pipeline_that_fails_is_told_in_a_line(steps: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"fails on this image, 96 x 64 pixels .*{said}") as told:
        made(A.Compose(steps, bbox_params=BOXES))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("fields", ["labels", ["image"], ["labels", "masks"], ["bboxes"]])
def test_fields_that_cannot_be_are_refused(fields: Any) -> None:
    boxes = A.BboxParams(format="coco", label_fields=fields)
    with pytest.raises(InputError, match="must be a list of names"):
        pipeline_checks.check(A.Compose([A.NoOp()], bbox_params=boxes))


def test_normalising_twice_is_refused() -> None:
    twice = A.Compose([A.Normalize(MEAN, STD)] * 2, bbox_params=BOXES)
    with pytest.raises(InputError, match="Normalize twice"):
        pipeline_checks.check(twice)


@pytest.mark.filterwarnings("ignore:Got processor for bboxes")
def test_an_empty_pipeline_changes_nothing(tmp_path: Path) -> None:
    make_dataset(tmp_path / "coco", train=2, val=1, size=96)
    how: Any = {"image_size": 96, "batch_size": 2, "num_workers": 0}
    nothing = A.Compose([], bbox_params=BOXES)
    own, plain = (
        InstanceSegmentationDataModule(tmp_path / "coco", **how, **vary)
        for vary in (
            {"custom_train_transforms": nothing},
            {"augmentation_preset": Augmentation()},
        )
    )
    one, other = next(iter(own.train_dataloader())), next(iter(plain.train_dataloader()))
    assert torch.equal(one["image"], other["image"])
    assert (one["boxes"] - other["boxes"]).abs().max() <= 1


def test_other_colours_are_told() -> None:
    for kind in ("min_max", "image", "image_per_channel"):
        told = A.Compose([A.Normalize(normalization=kind)], bbox_params=BOXES)
        assert f"normalises by {kind}, but" in str(pipeline_checks.other_colours(told, MEAN, STD))
    half = A.Compose([A.Normalize((0.5,) * 3, (0.5,) * 3)], bbox_params=BOXES)
    told = str(pipeline_checks.other_colours(half, MEAN, STD))
    assert "give the data module the same mean" in told
    assert pipeline_checks.other_colours(half, (0.5,) * 3, (0.5,) * 3) is None
    assert pipeline_checks.other_colours(GUIDE, MEAN, STD) is None
    assert pipeline_checks.other_colours(A.Compose([], bbox_params=BOXES), MEAN, STD) is None
    of_one, to_one = A.Normalize(MEAN, STD, max_pixel_value=1), A.ToFloat(max_value=255)
    told = pipeline_checks.other_colours(A.Compose([of_one], bbox_params=BOXES), MEAN, STD)
    assert "max_pixel_value=1, but white is 255" in str(told)
    both = A.Compose([to_one, of_one], bbox_params=BOXES)
    assert pipeline_checks.other_colours(both, MEAN, STD) is None


def test_masks_that_a_resize_moves_are_told() -> None:
    """Where the remark comes, the centre of a disc's mask is off that of its pixels; not after."""
    exact, nearest = cv2.INTER_NEAREST_EXACT, cv2.INTER_NEAREST
    still = [
        A.Resize(101, 101, mask_interpolation=exact),
        A.RandomScale((0.4, 0.4), p=1, mask_interpolation=exact),
        A.Affine(scale=0.7, rotate=20, p=1),
        A.Resize(101, 101, interpolation=nearest),
        A.CropAndPad(percent=-0.1, p=1, keep_size=False),
    ]
    moving = [
        A.Resize(101, 101),
        A.LongestMaxSize(211),
        A.RandomScale((0.4, 0.4), p=1),
        A.CropAndPad(percent=-0.1, p=1),
    ]
    for step in (*still, *moving):
        pipeline = A.Compose([step], bbox_params=BOXES)
        told = pipeline_checks.shifted_masks(pipeline)
        assert (told is not None) == (step in moving), step
        if told is not None:
            assert f": {type(step).__name__} moves masks" in told
            assert "mask_interpolation=cv2.INTER_NEAREST_EXACT" in told
        assert (_moved(pipeline) > 0.25) == (step in moving), step
    chosen = A.OneOf([A.RandomScale(), A.Resize(50, 50)], p=0.5)
    told = str(pipeline_checks.shifted_masks(A.Compose([chosen], bbox_params=BOXES)))
    assert "RandomScale, Resize moves" in told


def _moved(pipeline: Any) -> float:
    """How far, in pixels, masks of discs come out from the discs, in the mean over many."""
    far = []
    for k in range(20):
        disc = np.zeros((150, 150), np.uint8)
        cv2.circle(disc, (60 + 2 * k, 90 - k), 22, 1, -1)
        out = pipeline(
            image=np.repeat(disc[..., None] * 255, 3, 2),
            masks=disc[None],
            bboxes=[],
            labels=[],
        )
        seen, mask = (
            np.array([np.average(axis, weights=one) for axis in np.indices(one.shape)])
            for one in (out["image"][..., 0], np.asarray(out["masks"][0]))
        )
        far.append(mask - seen)
    return float(np.abs(np.mean(far, axis=0)).max())


def test_the_guides_pipeline_in_the_data_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "coco", train=6, val=2, size=64)

    def batches(workers: int) -> list[dict[str, Any]]:
        data = InstanceSegmentationDataModule(
            tmp_path / "coco",
            image_size=96,
            batch_size=2,
            num_workers=workers,
            custom_train_transforms=GUIDE,
        )
        with pytest.warns(UserWarning, match="RandomScale moves masks by up to half a pixel"):
            loader = data.train_dataloader()
        found = list(loader)
        data.teardown()
        return [data.on_after_batch_transfer(batch, 0) for batch in found]

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)  # of which it must use one
    truth = batches(0)
    sides = {side for b in truth for side in b["image"].shape[2:]}
    assert sides <= {96, 160}  # a tenth larger than the canvas, or smaller
    for a, b in zip(truth, batches(2), strict=True):
        assert a["image"].dtype == torch.float32
        for key in ("image", "boxes", "labels", "masks"):
            assert torch.equal(a[key], b[key])
    with pytest.raises(InputError, match="custom_train_transforms is 'flip'"):
        InstanceSegmentationDataModule(tmp_path / "coco", custom_train_transforms="flip")
