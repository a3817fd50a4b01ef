"""Signals that stop a run: a handler records them, and the run acts where all ranks can act alike.

Invariants: the handler only sets a flag, so it may interrupt any instruction; the same signal a
second time ends the process at once; a signal that comes too late is not lost; outside of a fit,
signals have their previous effect; the death of torchrun counts as SIGTERM.
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

from autotimm.distributed.parent import ended_with_torchrun

STOPS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
"""Schedulers and torchrun send the first, SLURM the second before the time limit
(slurm/train.sh), Ctrl-C sends the third, and a terminal that closes the fourth."""

ECHO = 3.0
"""Seconds within which a repeated signal counts as the same one. A terminal signals torchrun and
its processes, and torchrun forwards the signal to them once more."""

_came: dict[int, float] = {}  # signal number -> the time at which it first came
_before: dict[int, Any] = {}  # signal number -> the handler that ours replaced


def received() -> int:
    """The number of the first signal that has been caught; 0 for none."""
    return next(iter(_came), 0)


@contextmanager
def caught(ends: bool = False) -> Iterator[None]:
    """Record ``STOPS`` inside the block. It may be nested, and only works in the main thread.

    A signal that came too late to act upon takes its usual effect at the end of the block, because
    the script may run for hours after it. If the block raises an error, or a ``SystemExit`` after
    acting on the signal, this has priority.

    Args:
        ends: whether the process ends after the block, so that late signals have nothing to stop.
    """
    if _before or threading.current_thread() is not threading.main_thread():
        yield
        return
    _came.clear()
    caught = [n for n in STOPS if n != signal.SIGHUP or not _is_ignored(n)]  # nohup ignores it
    _before.update({number: signal.signal(number, _note) for number in caught})
    try:
        with ended_with_torchrun():
            yield
    except BaseException:
        _restore()
        raise
    if ends:
        _came.clear()
    release()


def release() -> None:
    """Stop catching signals, also before the end of the block if no callback handles them.

    A signal that has come takes its usual effect now.
    """
    _restore()
    number = received()
    _came.clear()
    if number:
        signal.raise_signal(number)


def ignore() -> None:
    """Ignore ``STOPS`` from now on, in a process that is about to end."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


def _restore() -> None:
    while _before:
        signal.signal(*_before.popitem())


def _note(number: int, _frame: FrameType | None) -> None:
    now = time.monotonic()
    if now - _came.setdefault(number, now) > ECHO:
        os._exit(128 + number)
