"""The progress bar, which never makes a GPU wait."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich import get_console

from autotimm.training.throughput import gpu_memory, is_logged, throughput_of


class ProgressBar(RichProgressBar):
    """Lightning's progress bar with more numbers, or none if the output goes to a file.

    It shows the loss and its parts, images per second, the share of time spent waiting for data,
    GPU memory and the remaining time, and after a validation its metrics.

    During training on a GPU the numbers are from the last logged step (``log_every_n_steps``). To
    read a number, the host waits until the device has computed it, and the device then waits for
    new work from the host. At a logged step this happens anyway.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shown: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not _is_seen():
            self.disable()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        due = self._shown is None or is_logged(trainer)
        if due or not (trainer.training and _waits(pl_module)):
            self._shown = self._read(trainer, pl_module)
        return self._shown

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shown = None  # to show the result of the validation
        # All ranks read them, even without a bar, because Lightning may reduce them over ranks.
        _ = trainer.progress_bar_metrics
        super().on_train_epoch_end(trainer, pl_module)

    def _read(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        chosen = super().get_metrics(trainer, pl_module)
        chosen.pop("v_num", None)  # a line at the end names the run's folder
        parts = {
            name.removesuffix("_loss"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("train/") and name.endswith("_loss")
        }
        shown = {name.removeprefix("train/"): v for name, v in {**chosen, **parts}.items()}
        speed = throughput_of(trainer)
        if speed and speed.recent:
            shown["images/s"] = f"{speed.recent[0]:.4g}"
            shown["data wait"] = f"{speed.recent[1]:.0%}"
        memory = gpu_memory(pl_module)
        if memory is not None:
            shown["memory"] = f"{memory:.1f} GiB"
        left = speed.remaining(trainer) if speed and trainer.training else None
        if left is not None:
            shown["ETA"] = str(left)
        return shown


def _is_seen() -> bool:
    """Whether the output can redraw a bar. In a file, it would only repeat ``EpochLines``."""
    return sys.stdout.isatty() or get_console().is_jupyter


def _waits(pl_module: LightningModule) -> bool:
    return pl_module.device.type != "cpu"
