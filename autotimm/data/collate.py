"""Samples -> a batch, as ``structures.Batch`` documents it.

Instances are padded to a bucket, so that a compiled step meets few shapes. All arrays of a batch
lie in one block of memory, which is all that a worker hands over: each tensor of its own would cost
a file descriptor and a mapping. ``finish`` cuts it up, where the batch is used. The image keeps the
layout in which it was decoded, [B, H, W, 3], and is handed on as a [B, 3, H, W] view of it
(channels last): no copy, and what convolutions on a GPU like best.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from autotimm.augmentation.transforms import Sample, checked_rle, label_of
from autotimm.data.block import Block
from autotimm.structures import MASK_CROP, Record

SMALLEST_BUCKET = 8


def bucket(instances: int) -> int:
    """The number of slots for so many instances: 8, 16, 32, 64, ..."""
    return max(SMALLEST_BUCKET, 1 << (instances - 1).bit_length()) if instances else SMALLEST_BUCKET


def collate(samples: list[Sample], padding: list[bool]) -> dict[str, Any]:
    """Makes a batch, to be finished by ``finish``.

    Args:
        samples: B of them; all with masks or all without, and so with targets. Where their
            canvases differ, the smaller ones are filled up to the right and below.
        padding: [B], whether each is a mere repeat.

    Returns:
        ``block``, a ``Block`` with the arrays; and of a ``structures.Batch`` what is no
        array: ``file_name`` and, where samples have it, ``target`` with arrays for tensors.
    """
    count, slots = len(samples), bucket(max(len(s.labels) for s in samples))
    records = [s.record for s in samples]
    given: dict[str, np.ndarray] = {
        "image_id": np.array([r["image_id"] for r in records], np.int64),
        "original_size": np.array([[r["height"], r["width"]] for r in records], np.int64),
        "scale": np.array([s.scale for s in samples], np.float32),
        "offset": np.array([s.offset for s in samples], np.float32),
        "padding": np.array(padding, np.bool_),
    }
    height, width = (max(s.image.shape[axis] for s in samples) for axis in (0, 1))
    shapes = {key: (value.dtype.name, value.shape) for key, value in given.items()} | {
        "image": (samples[0].image.dtype.name, (count, height, width, 3)),
        "boxes": ("float32", (count, slots, 4)),
        "labels": ("int64", (count, slots)),
    }
    if samples[0].masks is not None:
        shapes["masks"] = ("uint8", (count, slots, MASK_CROP, MASK_CROP))
    block = Block.of(shapes)
    # Through NumPy: PyTorch would share each small copy among threads that wait at full speed.
    arrays = {key: tensor.numpy() for key, tensor in block.tensors().items()}
    for key, value in given.items():
        arrays[key][...] = value
    for b, sample in enumerate(samples):
        n = len(sample.labels)
        h, w = sample.image.shape[:2]
        arrays["image"][b, :h, :w] = sample.image
        arrays["image"][b, h:], arrays["image"][b, :h, w:] = sample.fill, sample.fill
        arrays["boxes"][b, :n], arrays["boxes"][b, n:] = sample.boxes, 0
        arrays["labels"][b, :n], arrays["labels"][b, n:] = sample.labels, -1
        if sample.masks is not None:
            arrays["masks"][b, :n], arrays["masks"][b, n:] = sample.masks, 0
    batch = {"block": block, "file_name": [r["file_name"] for r in records]}
    if samples[0].target is not None:
        batch["target"] = [s.target for s in samples]
    return batch


def finish(batch: dict[str, Any]) -> dict[str, Any]:
    """The ``structures.Batch``, in the process that uses it; its tensors are views of the block."""
    batch |= batch.pop("block").tensors()
    batch["image"] = batch["image"].permute(0, 3, 1, 2)
    for truth in batch.get("target", []):
        for key, value in truth.items():
            if isinstance(value, np.ndarray):
                truth[key] = torch.from_numpy(value)
    return batch


def target(record: Record, labels: dict[int, int]) -> dict[str, Any]:
    """The ground truth of an image, crowd included, with NumPy arrays in place of tensors.

    Raises:
        DataError: an annotation cannot be used.
    """
    annotations = record["annotations"]
    xywh = np.array([a["bbox"] for a in annotations], dtype=np.float32).reshape(-1, 4)
    rles = [checked_rle(a, record) for a in annotations]
    classes = [label_of(a["category_id"], labels) for a in annotations]
    return {
        "boxes": np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
        "labels": np.array(classes, np.int64),
        "iscrowd": np.array([a["iscrowd"] for a in annotations], np.int64),
        "area": np.array([a["area"] for a in annotations], np.float32),
        "rles": rles,
    }
