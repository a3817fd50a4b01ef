"""What a data worker does about signals that are meant for the training process."""

from __future__ import annotations

import os
import signal
import threading


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
    threading.Thread(target=_end_for_parent, daemon=True).start()


def _end_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
