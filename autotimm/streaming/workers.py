"""What a data worker does first: it ignores signals, and writes past the progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext


@contextmanager
def signals_blocked(context: BaseContext | None = None) -> Iterator[None]:
    """Blocks SIGTERM while the block starts workers that call :func:`ignore_signals`.

    Workers inherit the blocked signal, and so do the threads that their imports start; otherwise a
    SIGTERM delivered to such a thread would end the worker. This process receives a SIGTERM that
    comes meanwhile when the block ends.

    Args:
        context: the multiprocessing context of the workers; None for Python's default.
    """
    if (context or multiprocessing).get_start_method() != "fork":
        resource_tracker.ensure_running()  # starting it inside the block would unblock SIGTERM
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals(_worker: int) -> None:
    """Makes this process ignore SIGINT, SIGHUP and SIGUSR2, and SIGTERM unless its parent sends it.

    A terminal, SLURM, or ``kill`` of a process group signals every process of a job. The training
    process then finishes its step, for which it may need a few more batches, and it would take a
    killed worker for a failure.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # sigwaitinfo() in a thread returns the sender's process id, which a Python handler cannot get.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process()  # not os.getppid(): that may be a fork server
    assert parent is not None
    threading.Thread(target=_end_for, args=(parent.pid,), daemon=True).start()


def write_directly() -> None:
    """Makes this process write to its streams, rather than above the progress bar of its parent.

    A worker that is forked has a copy of the bar. The parent's thread that draws it may have held
    the bar's lock at that moment, and what the worker writes would wait for the lock for ever.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        setattr(sys, name, getattr(stream, "rich_proxied_file", stream))


def _end_for(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
