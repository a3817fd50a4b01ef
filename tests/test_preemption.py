"""Runs that are asked to stop, at any time and on any rank, against the run that nobody stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from batches import small
from coco_folder import mixed
from lightning.pytorch import Callback

from autotimm import AutoTrainer, InstanceSegmentationDataModule
from autotimm.sharding.cli import shard
from autotimm.training.preemption import CODE

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def shard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    shard(mixed(folder / "coco"), folder / "shards", samples_per_shard=4)
    return folder / "shards"


class Record(Callback):
    """What happened, and a signal when the given thing happens.

    ``done`` has the losses and validations; what is left out of it may be done twice.
    """

    def __init__(self, at: str = "", number: int = signal.SIGTERM) -> None:
        self.at, self.number = at, number
        self.done: list[Any] = []

    def _see(self, what: str) -> None:
        if what == self.at:
            os.kill(os.getpid(), self.number)

    def setup(self, trainer, pl_module, stage) -> None:
        self._see("setup")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._see(f"batch {trainer.current_epoch}.{batch_idx}")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        ids, loss = batch["image_id"].tolist(), outputs["loss"].item()
        self.done.append((trainer.current_epoch, batch_idx, trainer.global_step, ids, loss))

    def on_validation_batch_start(self, trainer, *arguments) -> None:
        what = "sanity" if trainer.sanity_checking else f"validation {trainer.global_step}"
        self._see(f"{what}.{arguments[2]}")

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            self.done.append(("validated", trainer.current_epoch, trainer.global_step))

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self._see(f"epoch end {trainer.current_epoch}")
        self.done.append(("epoch", trainer.current_epoch, trainer.global_step))


def fit(folder: Path, root: Path, record: Record, ckpt_path: Any = None, **options: Any) -> None:
    module = InstanceSegmentationDataModule(folder, image_size=64, batch_size=2, num_workers=0)
    trainer = AutoTrainer(
        accelerator="cpu",
        default_root_dir=root,
        callbacks=[record],
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"max_epochs": 2} | options),
    )
    model = small(num_classes=4, mask_size=12, mask_rois=2, scheduler="cosine", warmup_steps=3)
    trainer.fit(model, datamodule=module, ckpt_path=ckpt_path)


EVERY = {}
STEPS = {"val_check_interval": 3}
SUMS = {"accumulate_grad_batches": 2, "limit_val_batches": 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "places"),
    [
        (EVERY, ["setup", "sanity.0", "batch 0.0", "batch 0.2", "batch 0.6", "validation 7.1"]),
        (EVERY, ["epoch end 0", "batch 1.0", "batch 1.6", "validation 14.0"]),
        (STEPS, ["batch 0.2", "validation 3.0", "validation 6.1", "batch 0.6"]),
        (SUMS, ["batch 0.0", "batch 0.1", "batch 0.4", "batch 0.6", "batch 1.0"]),
    ],
    ids=["first epoch", "second epoch", "validation in an epoch", "accumulation"],
)
def test_what_was_stopped_goes_on_as_if_it_had_not_been(
    options: dict[str, Any], places: list[str], shard_folder: Path, tmp_path: Path
) -> None:
    truth = Record()
    fit(shard_folder, tmp_path / "truth", truth, **options)
    for number, place in enumerate(places):
        root = tmp_path / str(number)
        first, second = Record(place), Record()
        with pytest.raises(SystemExit) as left:
            fit(shard_folder, root, first, **options)
        assert left.value.code == CODE
        fit(shard_folder, root, second, ckpt_path="last", **options)
        assert first.done + second.done == truth.done, place
