"""A user's own albumentations pipeline in place of a preset.

The image is first resized to fit the canvas, so that the pipeline works at the size at which the
model sees; what comes out is put into the middle of the canvas, cropped where it is larger. Masks
are dense inside the worker only, at that size. Boxes are those of the masks that come out, and an
instance stays where its box and a pixel of its mask do. The pipeline is seeded like a preset.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from autotimm import masks
from autotimm.data.transforms import Sample, checked_rle, fit, label_of, place_boxes, render
from autotimm.structures import MASK_CROP, Annotation, InputError, Record

Transforms = Callable[..., dict[str, Any]]


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
        transforms: called with ``image``, ``masks`` and, where it has ``bbox_params``, ``bboxes``
            and its label fields; may end in ``Normalize`` and ``ToTensorV2``.
        rng: where its seed comes from.
        fill: colour of the canvas, unless the pipeline normalises: then it is 0.
        with_masks: whether to crop the masks.
        interpolation: of the resize, one of ``transforms.INTERPOLATIONS``.

    Raises:
        InputError: the pipeline returns something else than images and masks of one size.
        DataError: an annotation cannot be used.
    """
    placement = fit(record["width"], record["height"], canvas, resize)
    width, height = placement.place[2:]
    annotations = [a for a in record["annotations"] if not a["iscrowd"]]
    xywh = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    boxes, share = place_boxes(xywh, placement, record["width"], record["height"])
    annotations = [a for a, s in zip(annotations, share, strict=True) if s > 0]
    given: dict[str, Any] = {
        "image": render(image, placement, (height, width), fill, interpolation),
        "masks": _dense(annotations, record, height, width),
    }
    order, numbers = _boxes_for(transforms, boxes[share > 0], height, width)
    if hasattr(transforms, "set_random_state"):
        # One generator for all steps: set_random_seed would give each step the same numbers, so
        # that they were all applied to an image or none.
        transforms.set_random_state(rng, random.Random(int(rng.integers(2**63))))  # noqa: S311
    out = transforms(**given, **order)
    pixels, dense = _checked(out, len(annotations))
    pixels, dense = _centred(pixels, dense, canvas, fill)
    kept = [
        (box, annotation, mask)
        for n, (annotation, mask) in enumerate(zip(annotations, dense, strict=True))
        if n in numbers(out) and (box := _box(mask)) is not None
    ]
    crops = [masks.crop(masks.encode(m), np.eye(2, 3), box) for box, _, m in kept]
    count = len(kept)
    return Sample(
        image=pixels,
        record=record,
        scale=placement.scale,
        offset=(0.0, 0.0),
        boxes=np.array([box for box, _, _ in kept], dtype=np.float32).reshape(count, 4),
        labels=np.array([label_of(a["category_id"], labels) for _, a, _ in kept], dtype=np.int64),
        masks=np.array(crops, np.uint8).reshape(count, MASK_CROP, MASK_CROP)
        if with_masks
        else None,
    )


def _dense(annotations: list[Annotation], record: Record, height: int, width: int) -> np.ndarray:
    """[N, height, width] uint8."""
    dense = np.zeros((len(annotations), height, width), np.uint8)
    for mask, annotation in zip(dense, annotations, strict=True):
        rle = checked_rle(annotation, record)
        cv2.resize(masks.decode(rle), (width, height), dst=mask, interpolation=cv2.INTER_NEAREST)
    return dense


def _boxes_for(
    transforms: Transforms, boxes: np.ndarray, height: int, width: int
) -> tuple[dict[str, Any], Callable[[dict[str, Any]], set[int]]]:
    """The arguments that a pipeline with ``bbox_params`` takes, and how to tell who is left.

    The label fields carry each instance's number, as albumentations drops boxes but not masks.
    """
    processor = getattr(transforms, "processors", {}).get("bboxes")
    count = len(boxes)
    if processor is None:
        return {}, lambda _: set(range(count))
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


def _checked(out: dict[str, Any], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The image [h, w, 3], uint8 or float32, and the masks [N, h, w] that a pipeline returned."""
    pixels = np.asarray(out["image"])
    if pixels.ndim == 3 and pixels.shape[2] != 3 and pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0)  # a tensor
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InputError(
            f"custom_train_transforms: the image comes out as {pixels.shape}, not as RGB"
        )
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float32)
    dense = np.array([np.asarray(m) for m in out["masks"]], dtype=np.uint8)
    dense = dense.reshape(len(dense), *pixels.shape[:2]) if not dense.size else dense
    if dense.shape != (count, *pixels.shape[:2]):
        raise InputError(
            f"custom_train_transforms: {count} masks and an image of {pixels.shape[:2]} come out as"
            f" masks {dense.shape}: it must transform masks alongside, and drop none"
        )
    return pixels, dense


def _centred(
    pixels: np.ndarray, dense: np.ndarray, canvas: tuple[int, int], fill: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Puts image and masks into the middle of the canvas."""
    source, place = [], []
    for size, room in zip(pixels.shape[:2], canvas, strict=True):
        skip, start = max(size - room, 0) // 2, max(room - size, 0) // 2
        length = min(size, room)
        source.append(slice(skip, skip + length))
        place.append(slice(start, start + length))
    out = np.zeros((*canvas, 3), pixels.dtype)
    if pixels.dtype == np.uint8:
        out[:] = fill
    out[tuple(place)] = pixels[tuple(source)]
    moved = np.zeros((len(dense), *canvas), np.uint8)
    moved[:, place[0], place[1]] = dense[:, source[0], source[1]]
    return out, moved


def _box(mask: np.ndarray) -> np.ndarray | None:
    """The tight box of a dense mask, or None where nothing is left of it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
