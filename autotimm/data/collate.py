"""Collates samples to a batch, which ``structures.Batch`` documents.

``collate`` pads instances to a bucket, so that a compiled step sees few shapes. All arrays of a
batch lie in one block of memory, the only thing that a worker sends, because each separate tensor
would cost a file descriptor and a memory mapping. ``finish`` makes the tensors in the process that
uses the batch. The image keeps the layout of decoding, [B, H, W, 3]; the batch has a [B, 3, H, W]
view of it (channels last), which needs no copy and is the fastest layout for convolutions on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from autotimm.augmentation.sample import Sample, checked_rle, label_of
from autotimm.coco.truths import truths
from autotimm.data.block import Block
from autotimm.structures import MASK_CROP, Record

SMALLEST_BUCKET = 8


def bucket(instances: int) -> int:
    """The number of slots for this number of instances: 8, 16, 32, 64, ..."""
    return max(SMALLEST_BUCKET, 1 << (instances - 1).bit_length()) if instances else SMALLEST_BUCKET


def collate(samples: list[Sample], padding: list[bool]) -> dict[str, Any]:
    """Makes the part of a batch that a worker sends; ``finish`` completes it.

    Args:
        samples: B samples; all of them with masks or none, and all with targets or none. Smaller
            canvases are padded at the right and at the bottom.
        padding: [B], whether each sample is a repetition.

    Returns:
        ``block``: a ``Block`` with the arrays; ``file_name``; and ``target`` if samples have it,
        with arrays where a ``structures.Batch`` has tensors.
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
    # NumPy copies, because PyTorch would split each small copy among threads that busy-wait.
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
    batch = {"block": block, "file_name": [r["file_name"] for r in records], **given_ids(records)}
    if samples[0].target is not None:
        batch["target"] = [s.target for s in samples]
    return batch


def given_ids(records: Sequence[Record]) -> dict[str, Any]:
    """The part of a batch that holds the source's own ids; empty if ``image_id`` holds them."""
    if not any("given_id" in record for record in records):
        return {}
    return {"given_id": [record.get("given_id") for record in records]}


def finish(batch: dict[str, Any]) -> dict[str, Any]:
    """Completes a ``structures.Batch``; its tensors are views of the block."""
    batch |= batch.pop("block").tensors()
    batch["image"] = batch["image"].permute(0, 3, 1, 2)
    for truth in batch.get("target", []):
        for key, value in truth.items():
            if isinstance(value, np.ndarray):
                truth[key] = torch.from_numpy(value)
    return batch


def target(record: Record, labels: dict[int, int]) -> dict[str, Any]:
    """The ground truth of an image as evaluation takes it, crowds and truths without a mask
    included: a ``structures.Target`` with NumPy arrays.

    Raises:
        DataError: an annotation cannot be used.
    """
    for one in record["annotations"]:
        checked_rle(one, record)
    found = truths(record)
    xywh = np.array([one["bbox"] for one in found], dtype=np.float64).reshape(-1, 4)
    return {
        "boxes": np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
        "labels": np.array([label_of(one["category_id"], labels) for one in found], np.int64),
        "iscrowd": np.array([one["iscrowd"] for one in found], np.int64),
        "area": np.array([one["area"] for one in found], np.float64),
        "rles": [one["segmentation"] for one in found],
    }
