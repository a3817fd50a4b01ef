"""The results file of a test: the dataset's own ids, whatever stands for them in a batch."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from autotimm.augmentation.sample import evaluation_sample
from autotimm.data import collate
from autotimm.outputs.results import SaveResults
from autotimm.structures import Record


def record(image_id: int, **changes: Any) -> Record:
    sound = {"image_id": image_id, "file_name": f"{image_id}.jpg", "width": 64, "height": 48}
    return {**sound, "annotations": [], **changes}  # type: ignore[typeddict-item]


def batch_of(records: list[Record]) -> Any:
    samples = []
    for one in records:
        image = np.zeros((48, 64, 3), np.uint8)
        sample = evaluation_sample(
            image, one, {3: 0}, (64, 64), resize="letterbox", fill=(0, 0, 0), with_masks=False
        )
        sample.target = collate.target(one, {3: 0})
        samples.append(sample)
    return collate.finish(collate.collate(samples, [False] * len(samples)))


@pytest.mark.parametrize("given", [None, "7f9c-aa", 0.5])
def test_ids_are_the_datasets_own(tmp_path: Path, given: Any) -> None:
    changes = {} if given is None else {"given_id": given}
    batch = batch_of([record(5, **changes), record(6)])
    category = {"id": 3, "name": "disc"} | ({} if given is None else {"given_id": "d"})
    model: Any = SimpleNamespace(categories=[category], class_names=["disc"])
    one = {
        "boxes": torch.tensor([[1.0, 2.0, 11.0, 22.0]]),
        "labels": torch.tensor([0]),
        "scores": torch.tensor([0.5]),
    }
    callback = SaveResults(tmp_path / "results.json")
    trainer: Any = SimpleNamespace(is_global_zero=True, testing=True)
    callback.on_test_epoch_start(trainer, model)
    callback.on_test_batch_end(trainer, model, [one, one], batch, 0)
    callback.on_test_epoch_end(trainer, model)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [r["image_id"] for r in results] == [5 if given is None else given, 6]
    assert {r["category_id"] for r in results} == {3 if given is None else "d"}
    assert results[0]["bbox"] == [1, 2, 10, 20]
