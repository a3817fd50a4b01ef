"""The progress bar, which does not have a GPU wait for it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's, but in training on a GPU the loss beside the bar is that of the last step that
    was logged (``log_every_n_steps``).

    To read a number the host waits until the device has computed it, and then the device until the
    host has sent it new work. At a step that is logged this happens anyway.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shown: Any = None

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        logged = trainer.global_step % max(trainer.log_every_n_steps, 1) == 0  # type: ignore[attr-defined]
        if self._shown is None or logged or not (trainer.training and _waits(pl_module)):
            self._shown = super().get_metrics(trainer, pl_module)
        return self._shown

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shown = None  # there is a validation's result to show
        super().on_train_epoch_end(trainer, pl_module)


def _waits(pl_module: LightningModule) -> bool:
    return pl_module.device.type != "cpu"
