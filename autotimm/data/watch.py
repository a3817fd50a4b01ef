"""A callback that seeds each step, resumes within an epoch, and reports skipped samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from autotimm.lightning_private import begin_next_epoch, uncount_step
from autotimm.streaming.loader import StreamLoader

_NAMED = 5  # samples that a summary lists


def step_seed(loader: StreamLoader) -> int:
    """The seed of torch's random generator for the step that uses a loader's latest batch."""
    stream = loader.stream
    key = (stream.seed, loader.epoch, loader.step, stream.world.rank)
    # The spawn key separates this seed from the streams of ``order.py``.
    return int(np.random.SeedSequence(key, spawn_key=(2,)).generate_state(1, np.uint64)[0])


class StreamWatch(Callback):
    """Connects a trainer with the data module's loaders; the data module adds it to the trainer.

    It seeds torch before each step from the data's seed, the epoch, the step and the rank, so that
    a resumed run draws the same random numbers as an uninterrupted one.

    A run that ``max_steps`` or ``max_time`` stopped within an epoch can resume with the rest of it;
    Lightning alone would count the epoch as done. If it resumes with another batch size or world,
    the callback sets Lightning's count of batches to the loader's, so that the epoch ends with its
    last sample.

    After every epoch and every evaluation it reports in one line how many samples of all ranks were
    skipped because they cannot be used, and the first few of them.

    Args:
        loaders: "train", "val", "test", "predict" -> the current loader.
    """

    def __init__(self, loaders: Mapping[str, StreamLoader]) -> None:
        self._loaders = loaders

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loader = self._loaders.get("train")
        if loader is not None and loader.state_dict()["consumed"] < loader.stream.samples:
            progress = checkpoint["loops"]["fit_loop"]
            _reopen(progress, loader.epoch, trainer.accumulate_grad_batches)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader = self._loaders.get("train")
        if loader is not None and loader.recounted:
            batches = trainer.fit_loop.epoch_loop.batch_progress.current
            batches.increment_by(loader.step - batches.ready)
        if loader is not None:
            _begin_next(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        loader = self._loaders.get("train")
        if loader is not None:
            torch.manual_seed(step_seed(loader))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report("train", f"epoch {trainer.current_epoch + 1}", trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._report("val", "validation", trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report("test", "test", trainer)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report("predict", "prediction", trainer)

    def _report(self, role: str, what: str, trainer: Trainer) -> None:
        if role not in self._loaders:  # the user has passed other loaders to the trainer
            return
        loader = self._loaders[role]
        parts: list[Any] = [list(loader.skipped.values())]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * trainer.world_size
            dist.all_gather_object(parts, list(loader.skipped.values()))
        skipped = [text for part in parts for text in part]
        if skipped:
            more = f"; and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
            rest = "" if role == "train" else ", and are not evaluated"
            rank_zero_warn(
                f"{what}: {len(skipped)} of {loader.stream.samples} samples were skipped, as they "
                f"cannot be used{rest}: {'; '.join(skipped[:_NAMED])}{more}"
            )


def _begin_next(trainer: Trainer) -> None:
    """Makes a fit with ``max_steps`` that resumes at the end of an epoch begin the next one.

    Lightning would end the finished epoch a second time, and so count one epoch too many.
    """
    fit = trainer.fit_loop
    total: Any = fit.epoch_progress.total
    current: Any = fit.epoch_progress.current
    done = current.processed == current.ready
    if done and fit.restarting and not fit.epoch_loop.restarted_on_train_batch_end:
        for count in (total, current):
            count.completed = count.processed
        fit.reset_restart_stage()
        begin_next_epoch(trainer)


def _reopen(progress: dict[str, Any], epoch: int, accumulated: int) -> None:
    """Resets a fit's saved progress to its state after the last step.

    Lightning closes the epoch when a fit stops within it. If it has not done so, the progress stays
    unchanged.

    Args:
        progress: the fit loop's progress in a checkpoint; changed in place.
        epoch: the training loader's epoch.
        accumulated: the number of batches to an optimizer step.
    """
    epochs, batches = progress["epoch_progress"], progress["epoch_loop.batch_progress"]
    closed = epochs["current"]["processed"] - epoch
    if closed <= 0:
        return
    for count in (epochs["total"], epochs["current"]):
        count["processed"] -= closed
        count["completed"] = count["processed"]
        count["ready"] = count["started"] = count["processed"] + 1
    if batches["current"]["completed"] == batches["current"]["ready"]:
        # Lightning takes a completed batch for the last of its epoch. A batch that is only
        # processed Lightning completes when it resumes, and then counts the logger's step again if
        # an optimizer step ended with it.
        for count in (batches["total"], batches["current"]):
            count["completed"] -= 1
        if batches["current"]["ready"] % accumulated == 0:
            uncount_step(progress)
