"""``save_every_minutes``: at which step the time is up, the same on all ranks."""

from __future__ import annotations

import time

from lightning.pytorch import Trainer


def steps_to_wait(seconds: float, seconds_a_step: float) -> int:
    """The number of steps after which to look at the clock again.

    It is half of the number that fits into the remaining time, and at least 1. The ranks have to
    agree at each look, which so happens a few times per interval instead of at every step.

    Args:
        seconds: the remaining time.
        seconds_a_step: the duration of a step.
    """
    return max(1, int(seconds / max(seconds_a_step, 1e-9) / 2))


class SaveClock:
    """The time since the last save, by the clock of the first rank.

    Args:
        minutes: between saves; None if no clock decides.
    """

    def __init__(self, minutes: float | None) -> None:
        self._minutes = minutes
        self._started = self._saved = (0.0, 0)  # time and step of the start, and of the last save
        self._look = 0  # the step at which to look at the clock

    def start(self, step: int) -> None:
        """Begins to count, before the step that follows ``step``."""
        self._started = self._saved = time.monotonic(), step
        self._look = step

    def saved(self, step: int) -> None:
        """Begins to count anew after a save at ``step``."""
        self._saved = time.monotonic(), step

    def is_up(self, trainer: Trainer) -> bool:
        """Whether it is time to save after the trainer's last step. All ranks call it."""
        step = trainer.global_step
        if self._minutes is None or step < self._look:
            return False
        now = time.monotonic()
        left = self._minutes * 60 - (now - self._saved[0])
        pace = (now - self._started[0]) / max(step - self._started[1], 1)
        up, wait = trainer.strategy.broadcast((left <= 0, steps_to_wait(left, pace)))
        self._look = step + wait
        return up
