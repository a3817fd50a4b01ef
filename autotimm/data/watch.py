"""What a trainer is told of the data: where a resumed epoch is, what random numbers a step has, and
which samples were skipped."""

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
    """The seed of torch's random numbers in the step that takes a loader's latest batch."""
    stream = loader.stream
    key = (stream.seed, loader.epoch, loader.step, stream.world.rank)
    # The spawn key keeps this apart from the streams of ``order.py``.
    return int(np.random.SeedSequence(key, spawn_key=(2,)).generate_state(1, np.uint64)[0])


class StreamWatch(Callback):
    """The data module brings it to every trainer that uses it.

    What a model draws in a step follows from the data's seed, the step and the rank, so that a
    resumed run draws what the undisturbed one would have drawn.

    A run that ``max_steps`` or ``max_time`` stopped in mid-epoch goes on with the rest of it, which
    Lightning alone would have counted as done.

    A run that goes on with another batch size or world gets Lightning's count of the epoch's
    batches set to where the loader is, so that the epoch ends with its last sample. After every
    epoch, and every evaluation, one line tells how many samples of all ranks were skipped because
    they cannot be used, and which.

    Args:
        loaders: "train", "val", "test", "predict" -> the loader that is in use.
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
        self._tell("train", f"epoch {trainer.current_epoch + 1}", trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._tell("val", "validation", trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell("test", "test", trainer)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell("predict", "prediction", trainer)

    def _tell(self, role: str, what: str, trainer: Trainer) -> None:
        if role not in self._loaders:  # the trainer was given other loaders
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
    """Has a fit with ``max_steps`` that goes on from an epoch's end begin the next epoch, where
    Lightning would count that end once more, and so an epoch too many."""
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
    """Makes a fit's progress, saved once it had stopped in mid-epoch, what it was after the last
    step; that of a fit which has not closed the epoch stays as it is.

    Args:
        progress: of the fit loop, as a checkpoint has it; changed in place.
        epoch: the one that the training loader is in.
        accumulated: batches to an optimizer's step.
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
        # Lightning takes a batch that is complete for the epoch's last. One that is only processed
        # it completes on its own, and counts the logger's step where an optimizer's step ended.
        for count in (batches["total"], batches["current"]):
            count["completed"] -= 1
        if batches["current"]["ready"] % accumulated == 0:
            uncount_step(progress)
