"""How ranks come to act alike on a signal that may have reached one of them only.

Invariants: every rank asks and hears the same number of times, so that all hear the same answer; no
device is waited for; the host waits only for ranks that are a whole step behind.
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
"""Seconds between two looks into the store."""
SETTLE = 0.2
"""Seconds that gloo's threads have to let go of their last tensors before Python ends."""


class Agreement:
    """The common answer to "has a signal come?".

    Args:
        group: of all ranks, over gloo, for nothing else; None for one process alone.
        store: that all ranks reach; where there is a group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, store: Store | None = None) -> None:
        self._group, self._store = group, store
        self._asked: tuple[torch.Tensor, dist.Work] | None = None
        self._looked = 0.0

    def ask(self) -> None:
        """Begins a question to all ranks, without waiting for them."""
        if self._group is not None:
            number = torch.tensor(signals.received())
            work = dist.all_reduce(number, dist.ReduceOp.MAX, self._group, async_op=True)
            assert work is not None
            self._asked = number, work

    def answer(self) -> int:
        """The number of a signal that had come to some rank when it asked last; 0 for none."""
        if self._group is None:
            return signals.received()
        if self._asked is None:
            return 0
        number, work = self._asked
        self._asked = None
        work.wait()
        return int(number)

    def now(self) -> int:
        """As :meth:`answer`, of this moment: all ranks wait for each other."""
        before = self.answer()
        self.ask()
        return self.answer() or before

    def heard(self) -> bool:
        """Whether a signal came to this rank, or another has said that one came to it.

        No rank waits here, and they need not hear it at the same time: it tells when it is worth
        going where they meet, with :meth:`now`.
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

    def together(self) -> None:
        """Waits for all ranks."""
        if self._group is not None:
            dist.barrier(self._group)

    def leave(self) -> None:
        """Gives the group's threads and sockets back, of which every fit has its own.

        Called by all ranks where nothing is asked any more. Not after an error: the ranks may have
        asked differently often, and those that are left would wait.
        """
        self.answer()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None


def over_gloo(rendezvous: Rendezvous, timeout: timedelta) -> Agreement:
    """An agreement of all ranks of the job; called by all of them at once.

    Args:
        rendezvous: of the job.
        timeout: after which a rank that does not answer is an error.

    Raises:
        InputError: the nodes do not reach each other.
    """
    try:
        group: Any = dist.new_group(timeout=timeout, backend="gloo")
    except RuntimeError as error:
        raise InputError(
            f"the ranks do not reach each other over TCP ({' '.join(str(error).split())[:300]}): "
            "name the network interface that the nodes share in GLOO_SOCKET_IFNAME"
        ) from error
    # A key of its own: those of an earlier fit are still there.
    return Agreement(group, PrefixStore(f"agreement/{rendezvous.held}", rendezvous.store))


def settle_at_exit() -> None:
    """Has this process wait for ``SETTLE`` when it ends, after collectives over gloo.

    A thread of gloo's drops the tensors of a collective after the main thread was told of its end.
    If Python ends meanwhile, that thread gets no GIL and aborts the process: a run that is whole
    would end with SIGABRT. Leaving the group does not help, as its threads live on with whatever
    holds it, and a barrier would wait for ranks that are gone.
    """
    atexit.unregister(_settle)
    atexit.register(_settle)


def _settle() -> None:
    time.sleep(SETTLE)
