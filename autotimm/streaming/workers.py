"""What a data worker does about signals that are meant for the training process."""

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
    """Around the start of workers that call :func:`outlive_signals`: they have SIGTERM blocked from
    the first, and with it the threads that their imports start, which it would end them by. One
    that comes to this process meanwhile comes after it.

    Args:
        context: what the workers are started by; Python's default where there is none.
    """
    if (context or multiprocessing).get_start_method() != "fork":
        resource_tracker.ensure_running()  # before the block: its own start would lift it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_signals(_worker: int) -> None:
    """Has this process end by itself or by its parent's word, whoever else asks it to.

    Who stops a job signals every process of it: a terminal, SLURM, ``kill`` of a process group.
    The training process then finishes its step and needs a few more batches for that; what a worker
    was killed by it would take for a failure.
    """
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # A handler is not told who sent a signal, a thread that waits for it is.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process()  # not os.getppid(): that may be a fork server
    assert parent is not None
    threading.Thread(target=_end_for, args=(parent.pid,), daemon=True).start()


def _end_for(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
