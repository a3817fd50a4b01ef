"""A line an epoch: its loss, its AP, its speed, and advice where the run waits for data."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from autotimm.training.progress_line import can_redraw, clock, epochs_of
from autotimm.training.throughput import throughput_of

BOUND = 0.1
"""The share of time spent waiting for data from which a line says what helps. The first batches of
each epoch always cause some wait."""

_COLUMNS = 80  # of a terminal: a longer line would be broken in two


class EpochLines(Callback):
    """Prints a line per epoch to a file, or to a terminal that cannot show a progress bar.

    It has at most 80 columns: loss, AP after a validation, the remaining time, images per second,
    the share of time spent waiting for data and GPU memory, as much of this as fits, in this order.
    The loss is the mean over the epoch's batches on the first rank. The first epoch that waits for
    data much gets a second line, which says what helps.
    """

    def __init__(self) -> None:
        self._measured = self._advised = False
        self._mean: Tensor | None = None  # on the device, so that the host does not wait for it
        self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mean, self._batches = None, 0
        self._advised = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = (outputs["loss"] if isinstance(outputs, dict) else outputs).detach()
        loss = loss.float() * trainer.accumulate_grad_batches  # Lightning has divided it
        self._batches += 1
        # Update the mean: a sum would lose digits over an epoch of a million batches.
        self._mean = (
            loss if self._mean is None else self._mean + (loss - self._mean) / self._batches
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measured = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mean, self._mean, self._batches = self._mean, None, 0
        measured, self._measured = self._measured, False
        values = trainer.callback_metrics  # on all ranks: Lightning may reduce them over ranks
        if mean is None or not trainer.is_global_zero or can_redraw():
            return
        parts = [f"loss {mean:.4g}"]
        if measured:
            ap = {name: value for name, value in values.items() if name.endswith("mAP")}
            parts += [f"{n.removeprefix('val/')} {v:.3g}" for n, v in sorted(ap.items())]
        wait = float(values.get("train/data_wait", 0.0))
        rest = [f"{clock(left.total_seconds())} to go"] if (left := _left(trainer)) else []
        if "train/images_per_second" in values:
            rate = float(values["train/images_per_second"])
            rest.append(f"{f'{rate:.3g}' if rate < 100 else f'{rate:,.0f}'} images/s")
            rest.insert(0 if wait >= BOUND else 2, f"data wait {wait:.0%}")
        parts += rest
        if "train/gpu_memory_gib" in values:
            parts.append(f"GPU {values['train/gpu_memory_gib']:.1f} GiB")
        last = epochs_of(trainer, batches_left=0)
        end = "" if last is None else f" of {last}"
        print(fitting(f"epoch {trainer.current_epoch + 1}{end}:", parts), flush=True)
        if wait >= BOUND and not self._advised:
            self._advised = True
            print(f"{wait:.0%} of the time goes into waiting for data: raise --data.num_workers")


def _left(trainer: Trainer) -> timedelta | None:
    speed = throughput_of(trainer)
    return speed.remaining(trainer) if speed else None


def fitting(head: str, parts: Sequence[str]) -> str:
    """A line with as many parts as fit into 80 columns, the first one in any case."""
    line = f"{head} {parts[0]}"
    for part in parts[1:]:
        if len(line) + len(part) + 2 < _COLUMNS:  # a full line is broken by some terminals
            line += f", {part}"
    return line
