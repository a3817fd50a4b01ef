"""The arguments of AutoTrainer for saving and keeping checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from autotimm.plain import plain_settings
from autotimm.structures import InputError


@plain_settings
@dataclass(frozen=True, kw_only=True, slots=True)
class SaveSettings:
    """When to save, and what to keep.

    Attributes:
        save_every_n_epochs: epochs between saves; 0 for never.
        save_every_n_steps: optimizer steps between saves.
        save_every_minutes: minutes between saves.
        keep_last: the number of newest checkpoints to keep; -1 for all.
        keep_best: the number of best checkpoints to keep; 0 for none.
        best_metric: the name of a validation metric that determines the best checkpoint. By default
            ``val/<name>`` of the model's first metric on the progress bar, or of its first one. A
            model without metrics has no best checkpoint.
        best_mode: "max" if large values of it are good, "min" if small ones are. By default "max",
            or "min" if its name contains "loss".

    Raises:
        InputError: a value is invalid or would have no effect.
    """

    save_every_n_epochs: int = 1
    save_every_n_steps: int | None = None
    save_every_minutes: float | None = None
    keep_last: int = 2
    keep_best: int = 1
    best_metric: str | None = None
    best_mode: Literal["max", "min"] | None = None

    def __post_init__(self) -> None:
        if self.save_every_n_epochs < 0:
            raise InputError(f"save_every_n_epochs={self.save_every_n_epochs} must be 0 or more")
        if self.save_every_n_steps is not None and self.save_every_n_steps < 1:
            raise InputError(f"save_every_n_steps={self.save_every_n_steps} must be at least 1")
        minutes = self.save_every_minutes
        if minutes is not None and not (0 < minutes < math.inf):
            raise InputError(f"save_every_minutes={minutes} must be a number above 0")
        if self.keep_last < 1 and self.keep_last != -1:
            raise InputError(f"keep_last={self.keep_last} must be at least 1, or -1 for all")
        if self.keep_best < 0:
            raise InputError(f"keep_best={self.keep_best} must be 0 or more")
        if self.best_mode not in (None, "max", "min"):
            raise InputError(f"best_mode={self.best_mode!r} must be max or min")
        if self.best_metric is None and self.best_mode is not None:
            raise InputError("best_mode has no effect without best_metric: give both")
        if self.best_metric == "":
            raise InputError("best_metric is empty: name one, or leave it out")
        if self.best_metric is not None and not self.keep_best:
            raise InputError("best_metric has no effect with keep_best=0: leave one of them out")

    def check_saves_nothing(self) -> None:
        """Raise InputError if any value differs from its default, although nothing is saved."""
        given = {one.name: (getattr(self, one.name), one.default) for one in fields(self)}
        changed = [f"{name}={value}" for name, (value, usual) in given.items() if value != usual]
        if changed:
            raise InputError(
                f"enable_checkpointing=False saves nothing: leave out {', '.join(changed)}"
            )
