"""Keeps data workers alive when a signal that is meant for the training process reaches them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext


@contextmanager
def shielded(context: BaseContext | None = None) -> Iterator[None]:
    """Blocks SIGTERM while the block starts workers that call :func:`outlive_signals`.

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


def outlive_signals(_worker: int) -> None:
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


def _end_for(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
