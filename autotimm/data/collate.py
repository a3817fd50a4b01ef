"""Samples -> a batch, as ``structures.Batch`` documents it.

Instances are padded to a bucket, so that a compiled step meets few shapes. The image keeps the
layout in which it was decoded, [B, H, W, 3], and is handed on as a [B, 3, H, W] view of it
(channels last): no copy, and what convolutions on a GPU like best.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from autotimm.data.transforms import Sample, checked_rle, label_of
from autotimm.structures import MASK_CROP, Record

SMALLEST_BUCKET = 8


def bucket(instances: int) -> int:
    """The number of slots for so many instances: 8, 16, 32, 64, ..."""
    return max(SMALLEST_BUCKET, 1 << (instances - 1).bit_length()) if instances else SMALLEST_BUCKET


def collate(samples: list[Sample], padding: list[bool]) -> dict[str, Any]:
    """Makes a batch.

    Args:
        samples: B of them, of one canvas size; all with masks or all without, and so with targets.
        padding: [B], whether each is a mere repeat.

    Returns:
        A ``structures.Batch``, but for the arrays in ``target``, which are NumPy's: each tensor
        that leaves a worker costs a file descriptor. ``finish`` turns them into tensors.
    """
    count, slots = len(samples), bucket(max(len(s.labels) for s in samples))
    image = _empty((count, *samples[0].image.shape), torch.from_numpy(samples[0].image[:0]).dtype)
    boxes = torch.zeros(count, slots, 4)
    classes = torch.full((count, slots), -1)
    crops = None
    if samples[0].masks is not None:
        crops = _empty((count, slots, MASK_CROP, MASK_CROP), torch.uint8)
    for b, sample in enumerate(samples):
        n = len(sample.labels)
        image[b] = torch.from_numpy(sample.image)
        boxes[b, :n] = torch.from_numpy(sample.boxes)
        classes[b, :n] = torch.from_numpy(sample.labels)
        if crops is not None and sample.masks is not None:
            crops[b, :n] = torch.from_numpy(sample.masks)
            crops[b, n:] = 0
    records = [s.record for s in samples]
    batch = {
        "image": image.permute(0, 3, 1, 2),
        "image_id": torch.tensor([r["image_id"] for r in records]),
        "file_name": [r["file_name"] for r in records],
        "original_size": torch.tensor([[r["height"], r["width"]] for r in records]),
        "scale": torch.tensor([s.scale for s in samples], dtype=torch.float32),
        "offset": torch.tensor([s.offset for s in samples], dtype=torch.float32),
        "padding": torch.tensor(padding),
        "boxes": boxes,
        "labels": classes,
    }
    if crops is not None:
        batch["masks"] = crops
    if samples[0].target is not None:
        batch["target"] = [s.target for s in samples]
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


def finish(batch: dict[str, Any]) -> dict[str, Any]:
    """Turns the arrays of ``target`` into tensors, in the process that uses them."""
    for truth in batch.get("target", []):
        for key, value in truth.items():
            if isinstance(value, np.ndarray):
                truth[key] = torch.from_numpy(value)
    return batch


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor; inside a worker in shared memory, so that sending it copies nothing."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)
