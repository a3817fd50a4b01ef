"""How fast a run is, and what bounds it: waiting for data or computing.

Invariants: nothing here has a GPU wait for the host within an epoch; time in validation counts for
nothing; what a rank reads of its own clock is joined with the others' once an epoch.

Data wait is the time in which a rank could not compute because it had no batch. On a CPU that is
how long the loader took to hand it out. On a GPU, whose work the host sends ahead, it is the part
of that in which the device stood still, which two events on its stream tell: one behind a step's
work, one in front of the next step's.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

BOUND = 0.1
"""Share of the time from which on waiting for data is what bounds a run: below it are the moments
in which an epoch's first batches are made."""


class _Mark(NamedTuple):
    """What was counted up to a moment; two of them tell what was between."""

    seconds: float  # of training
    images: int  # of all ranks
    waited: float  # seconds, of this rank


class _Gap(NamedTuple):
    """Between two steps on a GPU."""

    before: torch.cuda.Event  # behind the work of a step
    after: torch.cuda.Event  # when the next one had its batch
    waited: float  # seconds that the loader took, by the host's clock


class Throughput(Callback):
    """Logs ``train/images_per_second``, of all ranks, and ``train/data_wait``, the share of the
    time spent waiting for data.

    At each logged step both tell of this rank since the last one; at the end of an epoch of the
    whole epoch, the wait that of the rank that waited most, since the others wait for it. On a GPU
    ``train/gpu_memory_gib`` is the most that was allocated, on any rank.

    Args:
        skip: batches at the start of each epoch, or where it is gone on with, that are left out:
            workers start and code compiles.
    """

    def __init__(self, skip: int = 2) -> None:
        self.skip = skip
        self._skipped = 0
        self.recent: tuple[float, float] | None = None
        """Images a second and data wait between the last two steps that were logged."""
        self._paused_since = self._paused = 0.0
        self._images, self._waited = 0, 0.0
        self._told = 0.0  # what the loader said last
        self._ended: float | None = None  # the last step, in seconds of training
        self._before: torch.cuda.Event | None = None
        self._gaps: deque[_Gap] = deque()
        self._epoch: _Mark | None = None
        self._window: _Mark | None = None
        self._logged = -1  # step
        self._started = (0.0, 0)  # when this process began to train, at which step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = (time.perf_counter(), trainer.global_step)
        self.on_train_epoch_start(trainer, pl_module)  # of an epoch that is gone on with, too

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch = self._window = self._ended = self._before = self.recent = None
        self._gaps.clear()
        self._skipped = 0
        self._told = _loader_waited(trainer) or 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        told = _loader_waited(trainer)
        if told is not None:
            waited, self._told = max(told - self._told, 0.0), told
        else:  # a loader that does not tell: all that is between two steps
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
        # Exchanged here, by all ranks. With sync_dist Lightning does it when a value is first read,
        # which is for the first rank alone to do, while the others may be saving a checkpoint.
        speeds, waits, memories = zip(
            *_of_all_ranks((*_rates(self._epoch, end), memory or 0.0)), strict=True
        )
        pl_module.log("train/images_per_second", sum(speeds) / len(speeds))
        pl_module.log("train/data_wait", max(waits))
        if memory is not None:
            pl_module.log("train/gpu_memory_gib", max(memories))

    def remaining(self, trainer: Trainer) -> timedelta | None:
        """How long the rest of the fit takes if it goes on as it went, validation included; None
        where its end or its speed is not known."""
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
        """Adds up the waits of the steps that a GPU is done with."""
        while self._gaps and (finished or self._gaps[0].after.query()):
            gap = self._gaps.popleft()
            # The clock of events counts milliseconds. More than the loader took is not its fault.
            self._waited += min(gap.before.elapsed_time(gap.after) / 1000, gap.waited)


class LearningRate(Callback):
    """Logs ``train/lr``, the highest of the parameter groups' rates: that of the heads."""

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        # Only where it is read: the device is waited for to take the number.
        if is_logged(trainer, trainer.global_step + 1):
            pl_module.log("train/lr", max(float(group["lr"]) for group in optimizer.param_groups))


class EpochLines(Callback):
    """Says one line an epoch where the output goes to a file, in which no progress bar shows.

    The loss is the mean over the epoch's batches on the first rank; AP stands in the lines of the
    epochs after which it was measured.
    """

    def __init__(self) -> None:
        self._measured = False
        self._mean: Tensor | None = None  # on the device, which nothing waits for
        self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mean, self._batches = None, 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = (outputs["loss"] if isinstance(outputs, dict) else outputs).detach()
        loss = loss.float() * trainer.accumulate_grad_batches  # by which Lightning has divided it
        self._batches += 1
        # A sum would lose digits over an epoch of a million batches.
        self._mean = (
            loss if self._mean is None else self._mean + (loss - self._mean) / self._batches
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measured = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mean, self._mean, self._batches = self._mean, None, 0
        measured, self._measured = self._measured, False
        values = trainer.callback_metrics  # by all ranks: Lightning may reduce what is read
        if mean is None or not trainer.is_global_zero or sys.stdout.isatty():
            return
        parts = [f"loss {mean:.4g}"]
        if "train/images_per_second" in values:
            parts.append(f"{values['train/images_per_second']:.4g} images/s")
            parts.append(bounds(float(values["train/data_wait"])))
        if "train/gpu_memory_gib" in values:
            parts.append(f"{values['train/gpu_memory_gib']:.1f} GiB of GPU memory")
        if measured:
            parts += [f"{n} {v:.4g}" for n, v in sorted(values.items()) if n.endswith("mAP")]
        speed = throughput_of(trainer)
        left = speed.remaining(trainer) if speed else None
        if left:
            parts.append(f"{left} to go")
        end = "" if trainer.max_epochs in (None, -1) else f" of {trainer.max_epochs}"
        print(f"epoch {trainer.current_epoch + 1}{end}:", ", ".join(parts), flush=True)


def _of_all_ranks(numbers: tuple[float, ...]) -> list[tuple[float, ...]]:
    """By rank, the numbers of each; called by all of them."""
    if not (dist.is_available() and dist.is_initialized()):
        return [numbers]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, numbers)
    return parts


def throughput_of(trainer: Any) -> Throughput | None:
    """The trainer's callback of that kind, if it has one."""
    return next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)


def bounds(wait: float) -> str:
    """What a share of time spent waiting for data, 0 to 1, says of what bounds the run."""
    what = "data" if wait >= BOUND else "the model"
    advice = ": raise data.num_workers" if wait >= BOUND else ""
    return f"{wait:.0%} of the time waiting for data (bound by {what}{advice})"


def is_logged(trainer: Trainer, step: int | None = None) -> bool:
    """Whether ``log_every_n_steps`` chooses a step, by its number from 1 on; that of the last one
    by default."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return (trainer.global_step if step is None else step) % max(every, 1) == 0


def gpu_memory(pl_module: LightningModule) -> float | None:
    """The most that was allocated on this rank's GPU so far, in GiB, without waiting for it."""
    if pl_module.device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(pl_module.device) / 2**30


def _rates(since: _Mark, until: _Mark) -> tuple[float, float]:
    """Images a second, and the share of the time that was spent waiting."""
    seconds = max(until.seconds - since.seconds, 1e-9)
    return (until.images - since.images) / seconds, min(
        (until.waited - since.waited) / seconds, 1.0
    )


def _loader_waited(trainer: Trainer) -> float | None:
    return getattr(trainer.train_dataloader, "waited", None)


def _finish_device_work(pl_module: LightningModule) -> None:
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize(pl_module.device)
