"""Starts data workers, and starts them anew if one of them hangs before it begins.

A process that is forked while another thread holds a lock of the interpreter's or of a library's
may wait for that lock for ever (on CPython 3.11 in its first instructions). Nobody would notice: a
DataLoader waits for batches without a limit, and the other ranks wait for this one.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from autotimm.files.retry import poll
from autotimm.images.turns import join, share
from autotimm.streaming.workers import ignore_signals, signals_blocked, write_directly
from autotimm.structures import InputError

PATIENCE = 120.0
"""Seconds in which all workers have to begin: importing from a slow disk takes many."""
_ATTEMPTS = 2
_PAUSE, _LONGEST = 0.001, 0.1  # seconds between two looks


def begin(worker: int, begun: Tensor, turns: str) -> None:
    """Runs first in a worker.

    Args:
        worker: its number.
        begun: [workers] uint8, shared, where it says that it runs.
        turns: with which it joins those that take turns at large images.
    """
    begun[worker] = 1
    join(turns)
    ignore_signals(worker)
    write_directly()


class Starter:
    """A DataLoader, made when it is needed, whose workers are known to have begun.

    Args:
        make: makes the DataLoader with further options.
        workers: that it starts.
    """

    def __init__(self, make: Callable[[dict[str, Any]], DataLoader], workers: int) -> None:
        self._make, self._workers = make, workers
        self._begun = torch.zeros(workers, dtype=torch.uint8).share_memory_()
        self._loader: DataLoader | None = None

    def iterator(self) -> Iterator[Any]:
        """The DataLoader's next iterator.

        Nothing was read where a worker hangs before it begins, so the workers are killed, and
        started anew once.

        Raises:
            InputError: a worker hangs a second time.
        """
        for _ in range(_ATTEMPTS):
            if self._loader is None:
                more = {"worker_init_fn": partial(begin, begun=self._begun, turns=share())}
                self._loader = self._make(more if self._workers else {})
            self._begun.zero_()
            before = {*multiprocessing.active_children()}
            with signals_blocked(self._loader.multiprocessing_context):
                batches = iter(self._loader)
            started = [one for one in multiprocessing.active_children() if one not in before]
            if not started or _all_begin(self._begun, started):
                return batches
            late = (self._begun == 0).nonzero().flatten().tolist()
            text = (
                f"data worker {', '.join(map(str, late))} of {self._workers} has not begun within "
                f"{PATIENCE:g} s of its start, as happens to a process that is forked while "
                "another thread holds a lock"
            )
            warnings.warn(f"{text}: the workers are started anew", stacklevel=4)
            self.close()
            del batches
            for process in started:  # SIGTERM would not reach one that hangs at its start
                process.kill()
                process.join()
        raise InputError(
            f"{text}, nor when it was started anew: give data.num_workers 0, or try again"
        )

    def close(self) -> None:
        """Stops the workers; the next iterator starts new ones."""
        self._loader = None


def _all_begin(begun: Tensor, workers: list[BaseProcess]) -> bool:
    """Whether all begin; True, too, if one has ended, which the DataLoader reports."""
    return poll(
        lambda: bool(begun.all()) or any(one.exitcode is not None for one in workers),
        PATIENCE,
        _PAUSE,
        _LONGEST,
    )
