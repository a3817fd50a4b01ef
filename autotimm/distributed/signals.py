"""Signals that ask a run to stop: they are noted, and acted upon where all ranks can act alike.

Invariants: a handler sets a flag and nothing else, so that it may come at any instruction; the same
signal once more ends the process at once; what comes too late is not lost; outside of a fit signals
do what they did before.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
"""From schedulers and torchrun; from SLURM ahead of the time limit (slurm/train.sh); Ctrl-C."""

ECHO = 3.0
"""Seconds within which the same signal is the same wish: a terminal signals torchrun and its
processes alike, and torchrun passes on what it gets."""

_came: dict[int, float] = {}  # signal number -> when it first came
_before: dict[int, Any] = {}  # signal number -> the handler that ours replaced


def received() -> int:
    """Number of the signal that came first since they are caught; 0 if none did."""
    return next(iter(_came), 0)


@contextmanager
def caught(ends: bool = False) -> Iterator[None]:
    """Within it, ``STOPS`` are noted. It may be nested; beside the main thread it does nothing.

    What came too late to be acted upon takes its usual effect at the end, where a script may go on
    for hours. An error comes first, and so does the ``SystemExit`` of who has acted upon it.

    Args:
        ends: whether the process ends here, so that there is nothing left to stop.
    """
    if _before or threading.current_thread() is not threading.main_thread():
        yield
        return
    _came.clear()
    _before.update({number: signal.signal(number, _note) for number in STOPS})
    try:
        yield
    except BaseException:
        _restore()
        raise
    if ends:
        _came.clear()
    release()


def release() -> None:
    """Ends the catching, early where nothing is there to act upon the signals.

    What came meanwhile takes its usual effect now.
    """
    _restore()
    number = received()
    _came.clear()
    if number:
        signal.raise_signal(number)


def ignore() -> None:
    """Has ``STOPS`` have no effect any more, in a process that is about to end."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def _restore() -> None:
    while _before:
        signal.signal(*_before.popitem())


def _note(number: int, _frame: FrameType | None) -> None:
    now = time.monotonic()
    if now - _came.setdefault(number, now) > ECHO:
        os._exit(128 + number)
