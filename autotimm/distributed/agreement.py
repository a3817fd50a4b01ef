"""Agreement of all ranks on a signal that may have reached only one of them.

Invariants: every rank asks and reads answers equally often, so that all get the same answer; the
host never waits for a device, and waits only for ranks that are a whole step behind.
"""

from __future__ import annotations

import atexit
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store

from autotimm.distributed import signals
from autotimm.distributed.rendezvous import Rendezvous
from autotimm.structures import InputError

_STOPPING = "stopping"  # key in the store
LOOK = 1.0
"""Seconds between two checks of the store."""
SETTLE = 0.2
"""Seconds for gloo's threads to release their last tensors before Python ends."""


class Agreement:
    """The common answer of all ranks to the question whether a signal has come.

    Args:
        group: a gloo group of all ranks, used only here; None for a single process.
        store: that all ranks can reach; None without a group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, store: Store | None = None) -> None:
        self._group, self._store = group, store
        self._asked: tuple[torch.Tensor, dist.Work] | None = None
        self._looked = 0.0

    def ask(self) -> None:
        """Starts a question to all ranks without waiting for them."""
        if self._group is not None:
            number = torch.tensor(signals.received())
            work = dist.all_reduce(number, dist.ReduceOp.MAX, self._group, async_op=True)
            assert work is not None
            self._asked = number, work

    def answer(self) -> int:
        """The number of a signal that any rank had received when it last asked; 0 for none."""
        if self._group is None:
            return signals.received()
        if self._asked is None:
            return 0
        number, work = self._asked
        self._asked = None
        work.wait()
        return int(number)

    def now(self) -> int:
        """As :meth:`answer`, but for this moment. All ranks call it and wait for each other."""
        before = self.answer()
        self.ask()
        return self.answer() or before

    def signalled(self) -> bool:
        """Whether this rank has received a signal, or knows from the store that another rank has.

        No rank waits here, and ranks may learn of the signal at different times. A rank that knows
        of one should call :meth:`now`, where all of them meet.
        """
        mine = signals.received() != 0
        if self._store is None:
            return mine
        if mine:
            self._store.set(_STOPPING, "yes")
        elif time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            return self._store.check([_STOPPING])
        return mine

    def barrier(self) -> None:
        """Waits until all ranks call it."""
        if self._group is not None:
            dist.barrier(self._group)

    def leave(self) -> None:
        """Releases the threads and sockets of the group, which each fit creates anew.

        All ranks call it after their last question. They must not call it after an error, because
        some may have asked more often than others, and would wait.
        """
        self.answer()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None


def over_gloo(rendezvous: Rendezvous, timeout: timedelta) -> Agreement:
    """Create the agreement of all ranks of the job. All of them call it together.

    Args:
        rendezvous: of the job.
        timeout: after which a rank that does not answer is an error.

    Raises:
        InputError: the nodes cannot reach each other.
    """
    try:
        group: Any = dist.new_group(timeout=timeout, backend="gloo")
    except RuntimeError as error:
        raise InputError(
            f"the ranks cannot reach each other over TCP ({' '.join(str(error).split())[:300]}): "
            "name the network interface that the nodes share in GLOO_SOCKET_IFNAME"
        ) from error
    # With a new prefix, because the keys of an earlier fit are still in the store.
    return Agreement(group, PrefixStore(f"agreement/{rendezvous.exchanges}", rendezvous.store))


def settle_at_exit() -> None:
    """Make this process wait for ``SETTLE`` seconds when it exits, after collectives over gloo.

    A gloo thread releases the tensors of a collective after the main thread has seen its end. If
    Python exits in between, the thread cannot get the GIL and aborts the process, so a successful
    run would end with SIGABRT. Destroying the group does not help, because its threads live as long
    as any reference to it, and a barrier would wait for ranks that have exited.
    """
    atexit.unregister(_settle)
    atexit.register(_settle)


def _settle() -> None:
    time.sleep(SETTLE)
