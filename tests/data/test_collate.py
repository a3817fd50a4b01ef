"""Batches: the keys of ``structures.Batch``, padding, and targets."""

from __future__ import annotations

import itertools
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch

from autotimm.augmentation.sample import Sample
from autotimm.coco import masks
from autotimm.data.collate import bucket, collate, finish, target
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.images.decode import DataError
from autotimm.structures import MASK_CROP, Annotation, Batch, Record, Target

LABELS = {3: 0, 5: 1}


def annotation(number: int, iscrowd: int = 0) -> Annotation:
    mask = np.zeros((20, 30), np.uint8)
    mask[2:9, number : number + 5] = 1
    return {
        "id": number,
        "category_id": 5 if number % 2 else 3,
        "bbox": [number, 2, 5, 7],
        "area": 35,
        "iscrowd": iscrowd,
        "segmentation": masks.encode(mask),
    }


def record(image_id: int, instances: int) -> Record:
    return {
        "image_id": image_id,
        "file_name": f"{image_id}.jpg",
        "width": 30,
        "height": 20,
        "annotations": [annotation(n, iscrowd=int(n == 0)) for n in range(instances)],
    }


def sample(image_id: int, instances: int, with_masks: bool = True) -> Sample:
    rng = np.random.default_rng(image_id)
    return Sample(
        image=rng.integers(0, 256, (32, 64, 3), dtype=np.uint8),
        record=record(image_id, instances),
        scale=(1.5, 1.25),
        offset=(0.0, 2.0),
        boxes=rng.random((instances, 4), dtype=np.float32) + 1,
        labels=np.arange(instances),
        masks=rng.integers(0, 2, (instances, MASK_CROP, MASK_CROP), dtype=np.uint8)
        if with_masks
        else None,
    )


def evaluated(image_id: int, instances: int) -> Sample:
    made = sample(image_id, instances)
    made.target = target(made.record, LABELS)
    return made


@pytest.mark.parametrize(
    ("instances", "slots"), [(0, 8), (1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (900, 1024)]
)
def test_buckets(instances: int, slots: int) -> None:
    assert bucket(instances) == slots


def test_a_batch_holds_its_samples() -> None:
    samples = [evaluated(7, 3), evaluated(8, 0), evaluated(9, 10)]
    batch = finish(collate(samples, [False, False, True]))
    assert set(batch) == set(Batch.__annotations__) - {"given_id"}
    shapes = {k: (tuple(v.shape), v.dtype) for k, v in batch.items() if hasattr(v, "shape")}
    assert shapes == {
        "image": ((3, 3, 32, 64), torch.uint8),
        "image_id": ((3,), torch.int64),
        "original_size": ((3, 2), torch.int64),
        "scale": ((3, 2), torch.float32),
        "offset": ((3, 2), torch.float32),
        "padding": ((3,), torch.bool),
        "boxes": ((3, 16, 4), torch.float32),
        "labels": ((3, 16), torch.int64),
        "masks": ((3, 16, MASK_CROP, MASK_CROP), torch.uint8),
    }
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert batch["file_name"] == ["7.jpg", "8.jpg", "9.jpg"]
    assert batch["image_id"].tolist() == [7, 8, 9]
    assert batch["padding"].tolist() == [False, False, True]
    assert batch["original_size"].tolist() == [[20, 30]] * 3
    assert batch["scale"][0].tolist() == [1.5, 1.25]
    assert batch["offset"][0].tolist() == [0, 2]
    for b, s in enumerate(samples):
        n = len(s.labels)
        assert np.array_equal(batch["image"][b].permute(1, 2, 0).numpy(), s.image)
        assert np.array_equal(batch["boxes"][b, :n].numpy(), s.boxes)
        assert np.array_equal(batch["masks"][b, :n].numpy(), s.masks)
        assert batch["labels"][b].tolist() == list(range(n)) + [-1] * (16 - n)
        assert not batch["boxes"][b, n:].any()
        assert not batch["masks"][b, n:].any()


def test_training_and_detection_leave_out_what_they_do_not_need() -> None:
    batch = finish(collate([sample(1, 2, with_masks=False)], [False]))
    assert set(batch) == set(Batch.__annotations__) - {"masks", "target", "given_id"}


def test_a_worker_hands_over_one_block_without_dense_masks(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Little more than file names goes through the pipe; everything else is in the block."""
    sent: list[bytes] = []
    data = InstanceSegmentationDataModule(
        shared_data / "coco_mini", image_size=640, batch_size=8, num_workers=1, masks=True
    )
    data.setup("fit")
    loader = data.train_dataloader()
    monkeypatch.setattr(loader, "_finish", None)  # to get the worker's unfinished batch
    for batch in itertools.islice(loader, 3):
        assert set(batch) == {"block", "file_name"}
        assert all(isinstance(name, str) for name in batch["file_name"])
        memory = batch["block"]._memory
        assert memory.is_shared()
        assert memory.is_contiguous()
        slots = batch["block"].tensors()["labels"].shape[1]
        dense = 8 * slots * 640 * 640
        assert len(memory) < 8 * 640 * 640 * 3 + 8 * 2 * slots * (MASK_CROP**2 + 64) + 1024 < dense
        sent.append(bytes(ForkingPickler.dumps(batch)))
        assert len(sent[-1]) < 4096
        print(f"{memory.nbytes} bytes a batch, {len(sent[-1])} through the pipe")
        whole = finish(batch)
        assert whole["masks"].shape == (8, slots, MASK_CROP, MASK_CROP)
        places = [t.data_ptr() - memory.data_ptr() for t in whole.values() if torch.is_tensor(t)]
        assert 0 < min(places) < max(places) < memory.nbytes
    assert len(sent) == 3
    loader.close()


def test_targets_are_the_annotations_crowd_included() -> None:
    truth = finish(collate([evaluated(1, 3)], [False]))["target"][0]
    assert set(truth) == set(Target.__annotations__)
    assert truth["boxes"].tolist() == [[n, 2, n + 5, 9] for n in range(3)]
    assert truth["boxes"].dtype == truth["area"].dtype == torch.float64
    assert truth["labels"].tolist() == [0, 1, 0]
    assert truth["iscrowd"].tolist() == [1, 0, 0]
    assert truth["area"].tolist() == [35] * 3
    assert [masks.area(rle) for rle in truth["rles"]] == [35] * 3
    empty = finish(collate([evaluated(1, 0)], [False]))["target"][0]
    assert empty["boxes"].shape == (0, 4)
    assert empty["rles"] == []


def test_a_mask_that_would_be_read_beyond_its_end_is_refused() -> None:
    bad = record(4, 1)
    bad["annotations"][0]["segmentation"]["counts"] = "ooo6"
    with pytest.raises(DataError, match="annotation 0: "):
        target(bad, LABELS)
