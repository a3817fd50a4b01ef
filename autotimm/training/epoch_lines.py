"""A line an epoch: its loss, its speed, and whether data or the model bounds the run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from autotimm.training.progress_line import can_redraw, epochs_of
from autotimm.training.throughput import throughput_of

BOUND = 0.1
"""The share of time spent waiting for data from which data bounds a run. The first batches of each
epoch always cause some wait."""


class EpochLines(Callback):
    """Prints a line per epoch to a file, or to a terminal that cannot show a progress bar.

    The loss is the mean over the epoch's batches on the first rank. Lines of epochs with a
    validation include AP.
    """

    def __init__(self) -> None:
        self._measured = False
        self._mean: Tensor | None = None  # on the device, so that the host does not wait for it
        self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mean, self._batches = None, 0

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
        last = epochs_of(trainer, batches_left=0)
        end = "" if last is None else f" of {last}"
        print(f"epoch {trainer.current_epoch + 1}{end}:", ", ".join(parts), flush=True)


def bounds(wait: float) -> str:
    """A text that says what bounds the run.

    Args:
        wait: the share of time spent waiting for data, 0 to 1.
    """
    what = "data" if wait >= BOUND else "the model"
    advice = ": raise data.num_workers" if wait >= BOUND else ""
    return f"{wait:.0%} of the time waiting for data (bound by {what}{advice})"
