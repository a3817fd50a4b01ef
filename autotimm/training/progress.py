"""The progress bar, which does not have a GPU wait for it."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich import get_console

from autotimm.training.throughput import gpu_memory, is_logged, throughput_of


class ProgressBar(RichProgressBar):
    """Lightning's, with what people look for: the loss and its parts, images a second, the share
    of the time spent waiting for data, GPU memory and the time to go; metrics after a validation.
    Where the output goes to a file there is none.

    In training on a GPU the numbers are those of the last step that was logged
    (``log_every_n_steps``). To read one the host waits until the device has computed it, and then
    the device until the host has sent it new work. At a step that is logged this happens anyway.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shown: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not _is_seen():
            self.disable()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        wanted = self._shown is None or is_logged(trainer)
        if wanted or not (trainer.training and _waits(pl_module)):
            self._shown = self._read(trainer, pl_module)
        return self._shown

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shown = None  # there is a validation's result to show
        # Read by all ranks, also those without a bar: Lightning may reduce what is read.
        _ = trainer.progress_bar_metrics
        super().on_train_epoch_end(trainer, pl_module)

    def _read(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        chosen = super().get_metrics(trainer, pl_module)
        chosen.pop("v_num", None)  # the bar's own folder is told at the end
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
    """Whether a bar can be drawn over itself; in a file its last state would be lines behind the
    others, which say the same (``EpochLines``)."""
    return sys.stdout.isatty() or get_console().is_jupyter


def _waits(pl_module: LightningModule) -> bool:
    return pl_module.device.type != "cpu"
