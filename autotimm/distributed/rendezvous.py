"""The rendezvous of a job's ranks, at which they exchange reports before they can train together.

It only needs a connection to the first rank, the same that ``torch.distributed`` will use. Each
rank writes a report into the key-value store there, and the first rank compares them and writes a
verdict, which all ranks read. So if a rank fails before the process group exists, the others do not
wait for it in vain, and a message that concerns all of them is printed once.

Invariants: every rank that has not failed takes part in the same exchanges in the same order; every
wait has a time limit; reports and verdicts are JSON.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import Any

import orjson
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch.distributed import DistError, DistNetworkError, PrefixStore, Store, TCPStore

from autotimm.distributed.launcher import rank_and_size
from autotimm.files.retry import poll
from autotimm.structures import InputError

Compare = Callable[[list[Any]], Any]

PATIENCE = timedelta(minutes=30)
"""How long the ranks wait for each other at an exchange unless the trainer's ``timeout_minutes``
says otherwise: starting from a slow disk takes long."""
_PARTING = timedelta(seconds=5)
_ATTEMPT = timedelta(seconds=5)  # to connect to a port whose store may have ended
_WHERE = "autotimm/where"  # key in torchrun's store: port and token of the first rank's store
_SHORTEST, _LONGEST = 0.005, 0.5  # seconds between two checks of the store
_NAMED = 4  # the most nodes that a message lists


class JointError(InputError):
    """An error that all ranks raise alike, so that only one of them has to print it."""


class UnreachableError(InputError):
    """The first rank cannot be reached, so this rank can agree with nobody on what to print."""


@dataclass
class Rendezvous:
    """The meeting point of a job's ranks.

    Attributes:
        store: that all ranks can reach.
        rank: of this process.
        size: the number of ranks.
        exchanges: the number of exchanges so far.
        patience: how long to wait for the other ranks at an exchange.
    """

    store: Store
    rank: int
    size: int
    exchanges: int = 0
    patience: timedelta = PATIENCE
    _present: tuple[int, ...] = ()

    def exchange(self, report: Any, compare: Compare, patience: timedelta | None = None) -> Any:
        """Sends this rank's report and returns the verdict, which is the same on every rank.

        Args:
            report: a JSON value.
            compare: computes the verdict from the reports by rank, with None for ranks that did not
                come. Only the first rank calls it.
            patience: how long to wait for the others; by default that of the rendezvous.

        Raises:
            TimeoutError: the first rank did not send a verdict in time.
        """
        patience = self.patience if patience is None else patience
        number, self.exchanges = self.exchanges, self.exchanges + 1
        keys = [f"{number}/{rank}" for rank in range(self.size)]
        verdict = f"{number}/verdict"
        self.store.set(keys[self.rank], orjson.dumps(report).decode())
        if self.rank == 0:
            complete = self._wait(keys, patience)
            present = [r for r, key in enumerate(keys) if complete or self.store.check([key])]
            contents = self.store.multi_get([keys[r] for r in present])
            reports: list[Any] = [None] * self.size
            for r, content in zip(present, contents, strict=True):
                reports[r] = orjson.loads(content)
            self._present = tuple(present)
            self.store.set(verdict, orjson.dumps(compare(reports)).decode())
        elif not self._wait([verdict], patience + _PARTING):
            raise TimeoutError(f"the first rank did not answer within {patience}")
        return orjson.loads(self.store.get(verdict))

    def part(self) -> None:
        """Waits for the other ranks before this process exits with the error of a verdict.

        All of them call it, and the first rank calls it after it has printed the error. A launcher
        ends all processes as soon as one exits, so none exits before the error is printed. The
        first rank may serve the store, so it exits after the others.
        """
        with contextlib.suppress(DistError):  # a rank has already exited
            if self.rank:
                self._wait([f"{self.exchanges}/printed"], _PARTING)
                self.store.set(f"{self.exchanges}/{self.rank}/parted", "")
            else:
                self.store.set(f"{self.exchanges}/printed", "")
                parted = [f"{self.exchanges}/{rank}/parted" for rank in self._present if rank]
                self._wait(parted, _PARTING)

    def _wait(self, keys: list[str], patience: timedelta) -> bool:
        """Waits for all keys; False if some are still missing after ``patience``."""
        # Not store.wait, which blocks signals and logs a message every second.
        return poll(
            lambda: self.store.check(keys), patience.total_seconds(), _SHORTEST, longest=_LONGEST
        )


_made: dict[tuple[str, int], Rendezvous] = {}


def rendezvous_at(
    address: str, port: int, rank: int, size: int, patience: timedelta = PATIENCE
) -> Rendezvous:
    """The rendezvous of the job whose first rank has this address; the same one at every call.

    The first rank serves the store, and ``torch.distributed`` will use it too.

    Raises:
        UnreachableError: the first rank cannot be reached.
    """
    if (address, port) in _made:
        return _made[address, port]
    served = (
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        and os.environ.get("MASTER_ADDR") == address
        and os.environ.get("MASTER_PORT") == str(port)
    )
    try:
        store = (_apart_from_torchrun if served else _store)(address, port, rank, patience)
    except DistError as error:
        raise UnreachableError(
            f"rank {rank} on {host_name()}: rank 0 cannot be reached at {address}:{port} within "
            f"{patience}: see whether it was started, and whether the nodes reach each other "
            "(MASTER_ADDR, MASTER_PORT)"
        ) from error
    rendezvous = Rendezvous(PrefixStore("autotimm", store), rank, size, patience=patience)
    return _made.setdefault((address, store.port), rendezvous)


def _store(address: str, port: int, rank: int, patience: timedelta) -> TCPStore:
    return TCPStore(
        address,
        port,
        is_master=rank == 0,
        timeout=patience,
        wait_for_workers=False,
        multi_tenant=True,
    )


def _apart_from_torchrun(address: str, port: int, rank: int, patience: timedelta) -> TCPStore:
    """A new store for this start of the processes, which ``torch.distributed`` will use too.

    torchrun's store outlives a restart, and the restarted processes would find the old addresses in
    it. No counter distinguishes the starts, because each node counts only its own failures. So the
    first rank serves another store and writes its port into torchrun's. The other ranks recognise
    the store of an earlier start because it does not answer, or because a process of their rank has
    already been there: the old first rank may live on for a while.

    Raises:
        DistError: the first rank cannot be reached.
    """
    board = TCPStore(address, port, is_master=False, timeout=patience, wait_for_workers=False)
    if rank == 0:
        store, token = _store(address, 0, rank, patience), secrets.token_hex()
        store.set(token, "")
        board.set(_WHERE, orjson.dumps([store.port, token]).decode())
    else:
        store = _announced_on(board, address, rank, patience)
    os.environ |= {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    return store


def _announced_on(board: Store, address: str, rank: int, patience: timedelta) -> TCPStore:
    """Connect to the store whose port the first rank has written to ``board``."""

    def look() -> TCPStore | None:
        if board.check([_WHERE]):
            port, token = orjson.loads(board.get(_WHERE))
            with contextlib.suppress(OSError, DistError):  # of an earlier start, or not ready yet
                socket.create_connection((address, port), _ATTEMPT.total_seconds()).close()
                store = _store(address, port, rank, _ATTEMPT)
                if store.check([token]) and store.add(f"{token}/{rank}", 1) == 1:
                    store.set_timeout(patience)
                    return store
        return None

    if store := poll(look, patience.total_seconds(), _LONGEST):
        return store
    raise DistNetworkError(f"the first rank did not announce its port within {patience}")


def launcher_rendezvous(patience: timedelta) -> Rendezvous | None:
    """The rendezvous of the processes that torchrun or srun has started; None for a single one."""
    rank, size = rank_and_size()
    if size == 1:
        return None
    if "TORCHELASTIC_RUN_ID" in os.environ:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    else:
        slurm = SLURMEnvironment(auto_requeue=False)
        address, port = slurm.main_address, slurm.main_port
    return rendezvous_at(address, port, rank, size, patience)


def host_name() -> str:
    """The name of this node."""
    return platform.node()


def located(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """A text with ranks and their nodes, such as "ranks 0-3, 8 on a, b".

    Args:
        ranks: ascending.
        hosts: the node of every rank of the job.
    """
    runs = []
    for _, run in groupby(enumerate(ranks), lambda pair: pair[1] - pair[0]):
        numbers = [rank for _, rank in run]
        runs.append(f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}")
    nodes = list(dict.fromkeys(hosts[rank] for rank in ranks))
    more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
    where = ", ".join(nodes[:_NAMED])
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(runs)} on {where}{more}"
