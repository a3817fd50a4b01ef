"""The speed of a run, and the share of its time that it waits for data.

Invariants: no GPU waits for the host within an epoch because of this module; time in validation
does not count; ranks exchange their measurements once per epoch.

Data wait is the time in which a rank cannot compute because it has no batch. On a CPU, this is the
time that the loader takes to return the batch. A GPU still computes earlier work for a part of that
time, so only the time between two events on its stream counts: after the work of one step, and
before the work of the next.
"""

from __future__ import annotations

import time
from collections import deque
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from autotimm.distributed.gather import from_all_ranks

LOGGED = frozenset(
    f"train/{name}" for name in ("images_per_second", "data_wait", "gpu_memory_gib", "lr")
)
"""The names of what the callbacks of this module log."""


class _Mark(NamedTuple):
    """The counters at a moment. The difference of two describes the time between them."""

    seconds: float  # of training
    images: int  # of all ranks
    waited: float  # seconds, of this rank


class _Gap(NamedTuple):
    """The gap between two steps on a GPU."""

    before: torch.cuda.Event  # after the work of a step
    after: torch.cuda.Event  # when the next step has its batch
    waited: float  # seconds that the loader took, by the host's clock


class Throughput(Callback):
    """Logs ``train/images_per_second``, the sum over ranks, and ``train/data_wait``, the share of
    time spent waiting for data.

    At each logged step, both describe the steps since the last one, as measured on this rank. At
    the end of an epoch, they describe the epoch; the wait is that of the rank that waited longest,
    because the others wait for it. ``train/gpu_memory_gib`` is the peak of allocated memory on any
    rank's GPU.

    Args:
        skip: the number of batches to ignore at the start of each epoch or resumed epoch, during
            which workers start and code compiles.
    """

    def __init__(self, skip: int = 2) -> None:
        self.skip = skip
        self._skipped = 0
        self.recent: tuple[float, float] | None = None
        """Images per second and data wait between the last two logged steps."""
        self._paused_since = self._paused = 0.0
        self._images, self._waited = 0, 0.0
        self._loader_waited = 0.0  # the loader's last total
        self._ended: float | None = None  # when the last step ended, in seconds of training
        self._before: torch.cuda.Event | None = None
        self._gaps: deque[_Gap] = deque()
        self._epoch: _Mark | None = None
        self._window: _Mark | None = None
        self._logged = -1  # the last logged step
        self._started = (0.0, 0)  # the time and step at which this process began to train

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = (time.perf_counter(), trainer.global_step)
        self.on_train_epoch_start(trainer, pl_module)  # not called by Lightning in a resumed epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch = self._window = self._ended = self._before = self.recent = None
        self._gaps.clear()
        self._skipped = 0
        self._loader_waited = _seconds_waited(trainer) or 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        total = _seconds_waited(trainer)
        if total is not None:
            waited, self._loader_waited = max(total - self._loader_waited, 0.0), total
        else:  # the loader does not measure it: the whole time between two steps
            waited = 0.0 if self._ended is None else self._seconds() - self._ended
        if self._before is None:
            self._waited += waited
        else:
            after = torch.cuda.Event(enable_timing=True)
            after.record()
            self._gaps.append(_Gap(self._before, after, waited))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda":
            self._before = torch.cuda.Event(enable_timing=True)
            self._before.record()
            self._add_gaps(finished=False)
        self._images += batch["image"].shape[0] * trainer.world_size
        self._ended = self._seconds()
        if self._epoch is None:
            self._skipped += 1
            if self._skipped >= self.skip:
                _finish_device_work(pl_module)
                self._add_gaps(finished=True)
                self._epoch = self._window = self._mark()
        elif is_logged(trainer) and trainer.global_step != self._logged:
            self._logged = trainer.global_step
            since, self._window = self._window, self._mark()
            assert since is not None
            self.recent = _rates(since, self._window)
            pl_module.log("train/images_per_second", self.recent[0])
            pl_module.log("train/data_wait", self.recent[1])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        _finish_device_work(pl_module)
        self._paused_since = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._paused += time.perf_counter() - self._paused_since

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._epoch is None:
            return
        _finish_device_work(pl_module)
        self._add_gaps(finished=True)
        end = self._mark()
        if end.images == self._epoch.images:
            return
        memory = gpu_memory(pl_module)
        # All ranks exchange the values here. With sync_dist, Lightning would do so when a value is
        # first read, perhaps by the first rank alone while the others save a checkpoint.
        speeds, waits, memories = zip(
            *from_all_ranks((*_rates(self._epoch, end), memory or 0.0)), strict=True
        )
        pl_module.log("train/images_per_second", sum(speeds) / len(speeds))
        pl_module.log("train/data_wait", max(waits))
        if memory is not None:
            pl_module.log("train/gpu_memory_gib", max(memories))

    def remaining(self, trainer: Trainer) -> timedelta | None:
        """The remaining time of the fit at the speed so far, with validations.

        None if its end or its speed is unknown.
        """
        since, first = self._started
        steps, total = trainer.global_step - first, trainer.estimated_stepping_batches
        if steps <= 0 or total in (float("inf"), -1):
            return None
        seconds = (time.perf_counter() - since) / steps * max(total - trainer.global_step, 0)
        return timedelta(seconds=round(seconds))

    def _seconds(self) -> float:
        return time.perf_counter() - self._paused

    def _mark(self) -> _Mark:
        return _Mark(self._seconds(), self._images, self._waited)

    def _add_gaps(self, finished: bool) -> None:
        """Adds the waits of the steps that a GPU has finished; of all steps if ``finished``."""
        while self._gaps and (finished or self._gaps[0].after.query()):
            gap = self._gaps.popleft()
            # Events measure milliseconds. The loader causes no more wait than the time it took.
            self._waited += min(gap.before.elapsed_time(gap.after) / 1000, gap.waited)


class LearningRate(Callback):
    """Logs ``train/lr``, the highest rate of the parameter groups, which is that of the heads."""

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        # Only at logged steps, because the host waits for the device to log a number.
        if is_logged(trainer, trainer.global_step + 1):
            pl_module.log("train/lr", max(float(group["lr"]) for group in optimizer.param_groups))


def throughput_of(trainer: Any) -> Throughput | None:
    """The trainer's Throughput callback, if it has one."""
    return next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)


def is_logged(trainer: Trainer, step: int | None = None) -> bool:
    """Whether ``log_every_n_steps`` logs a step.

    Args:
        trainer: of the run.
        step: the number of the step, from 1 on; by default the last step taken.
    """
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return (trainer.global_step if step is None else step) % max(every, 1) == 0


def gpu_memory(pl_module: LightningModule) -> float | None:
    """The peak of allocated memory on this rank's GPU in GiB, read without waiting for the GPU.

    None on a CPU.
    """
    if pl_module.device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(pl_module.device) / 2**30


def _rates(since: _Mark, until: _Mark) -> tuple[float, float]:
    """Images per second, and the share of time spent waiting, between two marks."""
    seconds = max(until.seconds - since.seconds, 1e-9)
    return (until.images - since.images) / seconds, min(
        (until.waited - since.waited) / seconds, 1.0
    )


def _seconds_waited(trainer: Trainer) -> float | None:
    """The total time that the loader took to return batches; None if it does not measure it."""
    return getattr(trainer.train_dataloader, "waited", None)


def _finish_device_work(pl_module: LightningModule) -> None:
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize(pl_module.device)
