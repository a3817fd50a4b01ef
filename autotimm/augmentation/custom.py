"""A user's own albumentations pipeline in place of a preset.

The image is first resized to fit the canvas, so that the pipeline works at the size at which the
model sees. A pipeline that itself resizes to a size of its own (``Resize``, ``RandomResizedCrop``,
...) gets the image as it is, up to twice the canvas. What comes out is put at the top left of the
canvas; where it is larger, the canvas grows, and the batch has the largest of its images' canvases.

Masks are dense inside the worker only. Boxes are those of the masks that come out, and an instance
stays where its box, by the pipeline's ``min_area`` and ``min_visibility``, and a pixel of its mask
do. The pipeline is seeded like a preset. ``data/pipeline.py`` refuses what cannot work.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from autotimm.augmentation import pipeline_checks
from autotimm.augmentation.sample import Sample, checked_rle, label_of
from autotimm.augmentation.transforms import Placement, fit, place_boxes, render
from autotimm.coco import masks
from autotimm.structures import MASK_CROP, Annotation, InputError, Record, is_trained_on

Transforms = Callable[..., dict[str, Any]]
_STEP = 64  # pixels by which a canvas grows: a compiled model is compiled for each size
_MOST_DETAIL = 2  # times the canvas: dense masks of a photograph would fill a worker's memory


def custom_sample(
    image: np.ndarray,
    record: Record,
    labels: dict[int, int],
    canvas: tuple[int, int],
    transforms: Transforms,
    rng: np.random.Generator,
    *,
    resize: str,
    fill: tuple[int, int, int],
    with_masks: bool,
    interpolation: str = "bilinear",
) -> Sample:
    """An image that went through an albumentations ``Compose``, with its instances.

    Args:
        image: [height, width, 3] uint8 RGB, as the record has it.
        record: what is known of it.
        labels: category id -> label.
        canvas: height and width.
        resize: one of ``transforms.RESIZES``.
        transforms: called with ``image``, ``bboxes``, its label fields and, where there are any,
            ``masks``; may end in ``Normalize`` and ``ToTensorV2``.
        rng: where its seed comes from.
        fill: colour of the canvas, unless the pipeline normalises: then it is 0.
        with_masks: whether to crop the masks.
        interpolation: of the resize, one of ``transforms.INTERPOLATIONS``.

    Raises:
        InputError: the pipeline returns something else than images and masks of one size, or
            images that are float and not normalised; or it crops more than there is.
        DataError: an annotation cannot be used.
    """
    placement = _before(record["width"], record["height"], canvas, resize, transforms)
    width, height = placement.place[2:]
    annotations = [a for a in record["annotations"] if is_trained_on(a)]
    xywh = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    boxes, share = place_boxes(xywh, placement, record["width"], record["height"])
    annotations = [a for a, s in zip(annotations, share, strict=True) if s > 0]
    # albumentations stacks masks and cannot stack none: then it gets one that is empty.
    given: dict[str, Any] = {
        "image": render(image, placement, (height, width), fill, interpolation),
        "masks": _dense(annotations, record, height, width)
        if annotations
        else np.zeros((1, height, width), np.uint8),
    }
    order, numbers = _boxes_for(transforms, boxes[share > 0], height, width)
    out = _applied(transforms, {**given, **order}, rng)
    normalised = pipeline_checks.normalisation(transforms) is not None
    pixels, dense = _checked(out, len(given["masks"]), normalised)
    if pixels.dtype != np.uint8:
        fill = (0, 0, 0)
    left = numbers(out)
    kept = [
        (box, annotation, mask)
        for n, (annotation, mask) in enumerate(zip(annotations, dense, strict=False))
        if n in left and (box := _box(mask)) is not None
    ]
    crops = [masks.crop(masks.encode(m), np.eye(2, 3), box) for box, _, m in kept]
    count, sizes = len(kept), zip(canvas, pixels.shape[:2], strict=True)
    return Sample(
        image=padded(pixels, [_grown(c, s) for c, s in sizes], fill),
        record=record,
        scale=placement.scale,
        offset=(0.0, 0.0),
        boxes=np.array([box for box, _, _ in kept], dtype=np.float32).reshape(count, 4),
        labels=np.array([label_of(a["category_id"], labels) for _, a, _ in kept], dtype=np.int64),
        masks=np.array(crops, np.uint8).reshape(count, MASK_CROP, MASK_CROP)
        if with_masks
        else None,
        fill=fill,
    )


def _applied(
    transforms: Transforms, given: dict[str, Any], rng: np.random.Generator
) -> dict[str, Any]:
    """What a pipeline makes of a sample; InputError if it fails."""
    if hasattr(transforms, "set_random_state"):
        # One generator for all steps: set_random_seed would give each step the same numbers, so
        # that they were all applied to an image or none.
        transforms.set_random_state(rng, random.Random(int(rng.integers(2**63))))  # noqa: S311
    try:
        return transforms(**given)
    except Exception as error:
        if pipeline_checks.is_of(error, "CropSizeError"):
            raise InputError(_too_large(error)) from error
        said = " ".join(f"{type(error).__name__}: {error}".split())
        height, width = given["image"].shape[:2]
        raise InputError(
            f"custom_train_transforms fails on this image, {width} x {height} pixels as it gets "
            f"it: {said} (--debug shows where)"
        ) from error


def _before(
    width: int, height: int, canvas: tuple[int, int], resize: str, transforms: Transforms
) -> Placement:
    """How the image is resized before the pipeline sees it."""
    if not pipeline_checks.resizes(transforms):
        return fit(width, height, canvas, resize)
    most = (_MOST_DETAIL * canvas[0], _MOST_DETAIL * canvas[1])
    if width <= most[1] and height <= most[0]:
        return Placement((0, 0, width, height), (0, 0, width, height))
    return fit(width, height, most, "letterbox")


def _grown(side: int, needed: int) -> int:
    """The side of a canvas that holds so many pixels."""
    return side + max(-(-(needed - side) // _STEP), 0) * _STEP


def _dense(annotations: list[Annotation], record: Record, height: int, width: int) -> np.ndarray:
    """[N, height, width] uint8."""
    dense = np.zeros((len(annotations), height, width), np.uint8)
    for mask, annotation in zip(dense, annotations, strict=True):
        rle = checked_rle(annotation, record)
        # By the pixels' centres, as the image is; INTER_NEAREST goes by their corners.
        how = cv2.INTER_NEAREST_EXACT
        cv2.resize(masks.decode(rle), (width, height), dst=mask, interpolation=how)
    return dense


def _too_large(error: Exception) -> str:
    said = str(error).rstrip(".")
    return (
        f"custom_train_transforms: {said}. Images come resized to fit image_size, so that one side "
        "is shorter: give the crop pad_if_needed=True, or put A.PadIfNeeded before it"
    )


def _boxes_for(
    transforms: Transforms, boxes: np.ndarray, height: int, width: int
) -> tuple[dict[str, Any], Callable[[dict[str, Any]], set[int]]]:
    """The boxes as a pipeline takes them, and a function that finds which instances it has left.

    The label fields carry each instance's number, as albumentations drops boxes but not masks.
    """
    processor = pipeline_checks.boxes_of(transforms)
    count = len(boxes)
    sides = boxes[:, 2:] - boxes[:, :2]
    kind = processor.params.format
    if kind == "coco":
        boxes = np.concatenate([boxes[:, :2], sides], axis=1)
    elif kind == "yolo":
        boxes = np.concatenate([boxes[:, :2] + sides / 2, sides], axis=1)
    if kind in ("yolo", "albumentations"):
        boxes = boxes / ([width, height] * 2)
    fields = processor.params.label_fields or []
    if not fields:
        numbered = np.concatenate([boxes, np.arange(count)[:, None]], axis=1)
        return {"bboxes": numbered}, lambda out: {round(float(b[4])) for b in out["bboxes"]}
    order = {"bboxes": boxes} | {field: list(range(count)) for field in fields}
    return order, lambda out: {round(float(n)) for n in out[fields[0]]}


def _checked(out: dict[str, Any], count: int, normalised: bool) -> tuple[np.ndarray, np.ndarray]:
    """The image [h, w, 3], uint8 or float32, and the masks [N, h, w] that a pipeline returned."""
    pixels = np.asarray(out["image"])
    if pixels.ndim == 3 and pixels.shape[2] != 3 and pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0)  # a tensor
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InputError(
            f"custom_train_transforms: the image comes out as {pixels.shape}, not as RGB"
        )
    if pixels.dtype != np.uint8:
        if not normalised:
            raise InputError(
                f"custom_train_transforms: the image comes out as {pixels.dtype}, but nothing "
                "normalises it: add A.Normalize(mean=..., std=...) before ToTensorV2, or leave it "
                "uint8, which the data module normalises"
            )
        pixels = pixels.astype(np.float32)
    # What a step fills with a value of its own, such as 255, is outside.
    dense = np.array([np.asarray(m) == 1 for m in out.get("masks", ())], dtype=np.uint8)
    dense = dense.reshape(len(dense), *pixels.shape[:2]) if not dense.size else dense
    if dense.shape != (count, *pixels.shape[:2]):
        raise InputError(
            f"custom_train_transforms: {count} masks and an image of {pixels.shape[:2]} come out as"
            f" masks {dense.shape}: it must transform masks alongside, and drop none"
        )
    return pixels, dense


def padded(pixels: np.ndarray, size: Sequence[int], fill: tuple[int, int, int]) -> np.ndarray:
    """The image at the top left of a canvas of that height and width."""
    out = np.empty((*size, 3), pixels.dtype)
    out[:] = fill
    out[: pixels.shape[0], : pixels.shape[1]] = pixels
    return out


def _box(mask: np.ndarray) -> np.ndarray | None:
    """The tight box of a dense mask, or None where nothing is left of it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
