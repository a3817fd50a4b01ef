"""``patience``: ends a fit when validations no longer get better."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities import rank_zero_info

from autotimm.checkpoints.callback import Checkpoints
from autotimm.structures import InputError


class StopEarly(EarlyStopping):
    """Lightning's EarlyStopping by the metric that also decides which checkpoint is the best one.

    Args:
        patience: the number of validations in a row without a better value after which to stop.
        wanted: the metric that the user names for the best checkpoint, if any.

    Raises:
        InputError: ``patience`` is no whole number above 0; in a fit, if there is no such metric.
    """

    def __init__(self, patience: int, wanted: str | None = None) -> None:
        given: Any = patience
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise InputError(f"patience={given!r} must be a whole number of validations, 1 or more")
        # A failed metric is NaN, which is not better, and a missing one is an error of Checkpoints.
        super().__init__(
            monitor="", patience=patience, mode="max", strict=False, check_finite=False
        )

        self.wanted = wanted

    @property
    def state_key(self) -> str:
        return type(self).__name__  # the monitor is not known yet when a checkpoint is read

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"monitor": self.monitor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        given = self.patience
        super().load_state_dict(state_dict)
        self.patience = given  # a resumed run may be given another one
        self.monitor = state_dict.get("monitor", "")

    def ended(self, states: Any) -> str:
        """How a run of these states of callbacks was ended, if this patience ended it; else "".

        A user's choice of another metric begins to count anew, as :meth:`on_train_start` does.
        """
        state = states.get(self.state_key) if isinstance(states, dict) else None
        waited = state.get("wait_count") if isinstance(state, dict) else None
        if not isinstance(waited, int) or waited < self.patience:
            return ""
        monitor = state.get("monitor") if isinstance(state, dict) else None
        if self.wanted not in (None, monitor):
            return ""
        return f"{waited} validations without a better {monitor}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.limit_val_batches == 0:
            raise InputError("patience has no effect with limit_val_batches=0: leave one out")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        saver = next((c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints)), None)
        monitor = None if saver is None else saver.monitor
        if saver is None or monitor is None:
            raise InputError(
                "patience needs the metric of the best checkpoint, and there is none: give the "
                "model metrics, or best_metric, and leave keep_best and enable_checkpointing on"
            )
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED  # by an earlier start
        if monitor != self.monitor:  # of a new run, or of one that resumes with another metric
            self.wait_count = 0
            self.best_score = torch.tensor(math.inf if saver.mode == "min" else -math.inf)
        self.monitor, self.mode = monitor, saver.mode

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED:
            rank_zero_info(
                f"ended early: {self.monitor} was best at {float(self.best_score):.4g}, and "
                f"{self.patience} validations since were not better"
            )


def stop_of(trainer: Any) -> StopEarly | None:
    """The trainer's StopEarly callback, if it has one."""
    return next(
        (one for one in getattr(trainer, "callbacks", ()) if isinstance(one, StopEarly)), None
    )
