"""Where the ranks of a job meet and hear the same verdict, whether or not they can train together.

It needs nothing but a connection to the first rank, the same that ``torch.distributed`` will make:
each rank leaves a report in the key-value store there, the first one judges them all and leaves a
verdict. So a rank that fails before the process group exists does not leave the others waiting in
it, and a line that concerns all of them is said once.

Invariants: every rank takes part in the same exchanges in the same order, or has failed; a wait
ends at a known time; what is exchanged is JSON.
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
"""How long the ranks wait for each other at an exchange: start-up on a slow disk is long."""
_PARTING = timedelta(seconds=5)
_ATTEMPT = timedelta(seconds=5)  # to connect to a port that is perhaps no longer that of a store
_WHERE = "autotimm/where"  # in torchrun's store: port and token of the first rank's own
_SHORTEST, _LONGEST = 0.005, 0.5  # seconds between two looks
_NAMED = 4  # nodes that a message lists


class JointError(InputError):
    """What all ranks raise alike, so that one of them need say it."""


@dataclass
class Rendezvous:
    """The place where the ranks of a job meet.

    Attributes:
        store: that all ranks reach.
        rank: of this process.
        size: number of ranks.
        held: how many exchanges this rank has taken part in.
    """

    store: Store
    rank: int
    size: int
    held: int = 0
    _came: tuple[int, ...] = ()

    def exchange(self, report: Any, compare: Compare, patience: timedelta = PATIENCE) -> Any:
        """Hands in this rank's report and returns the verdict, the same on every rank.

        Args:
            report: anything that JSON has.
            compare: makes the verdict of the reports, by rank, of which that of a rank that did not
                come is None; called on the first rank alone.
            patience: how long to wait for the others.

        Raises:
            TimeoutError: the first rank gave no verdict.
        """
        number, self.held = self.held, self.held + 1
        keys = [f"{number}/{rank}" for rank in range(self.size)]
        verdict = f"{number}/verdict"
        self.store.set(keys[self.rank], orjson.dumps(report).decode())
        if self.rank == 0:
            whole = self._wait(keys, patience)
            came = [r for r, key in enumerate(keys) if whole or self.store.check([key])]
            found = self.store.multi_get([keys[r] for r in came])
            reports: list[Any] = [None] * self.size
            for r, content in zip(came, found, strict=True):
                reports[r] = orjson.loads(content)
            self._came = tuple(came)
            self.store.set(verdict, orjson.dumps(compare(reports)).decode())
        elif not self._wait([verdict], patience + _PARTING):
            raise TimeoutError(f"the first rank said nothing within {patience}")
        return orjson.loads(self.store.get(verdict))

    def part(self) -> None:
        """Called by all ranks that ended with a verdict, by the first one when it has said so.

        A launcher ends the processes as soon as one of them has: nobody goes before that. Nor does
        the first one, which may serve the others, go before they know.
        """
        with contextlib.suppress(DistError):  # somebody has gone
            if self.rank:
                self._wait([f"{self.held}/said"], _PARTING)
                self.store.set(f"{self.held}/{self.rank}/parted", "")
            else:
                self.store.set(f"{self.held}/said", "")
                parted = [f"{self.held}/{rank}/parted" for rank in self._came if rank]
                self._wait(parted, _PARTING)

    def _wait(self, keys: list[str], patience: timedelta) -> bool:
        """Tells whether all keys were there in time."""
        # The store's own wait would keep signals out, and says of every second that it waited.
        return poll(
            lambda: self.store.check(keys), patience.total_seconds(), _SHORTEST, longest=_LONGEST
        )


_made: dict[tuple[str, int], Rendezvous] = {}


def rendezvous_at(
    address: str, port: int, rank: int, size: int, patience: timedelta = PATIENCE
) -> Rendezvous:
    """The rendezvous of the job whose first rank is there; the same one at every call.

    The first rank serves it. ``torch.distributed`` takes it over.

    Raises:
        InputError: the first rank is not to be reached.
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
        raise InputError(
            f"the first rank is not to be reached at {address}:{port}: see whether it was "
            "started, and whether the nodes reach each other (MASTER_ADDR, MASTER_PORT)"
        ) from error
    rendezvous = Rendezvous(PrefixStore("autotimm", store), rank, size)
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
    """A store of this start of the processes, for ``torch.distributed`` too.

    That of torchrun outlives a start, and in it the next one would meet the last one's addresses.
    Nothing tells the starts apart: each node counts its own failures only. So the first rank serves
    another store, and says in torchrun's where. An earlier start's is known by not answering, or by
    having met a process of this rank: its first rank may live for a while yet.

    Raises:
        DistError: the first rank is not to be reached.
    """
    board = TCPStore(address, port, is_master=False, timeout=patience, wait_for_workers=False)
    if rank == 0:
        store, token = _store(address, 0, rank, patience), secrets.token_hex()
        store.set(token, "")
        board.set(_WHERE, orjson.dumps([store.port, token]).decode())
    else:
        store = _told_of(board, address, rank, patience)
    os.environ |= {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    return store


def _told_of(board: Store, address: str, rank: int, patience: timedelta) -> TCPStore:
    """The store of which the first rank says on ``board`` where it is."""

    def look() -> TCPStore | None:
        if board.check([_WHERE]):
            port, token = orjson.loads(board.get(_WHERE))
            with contextlib.suppress(OSError, DistError):  # an earlier start's, or not yet there
                socket.create_connection((address, port), _ATTEMPT.total_seconds()).close()
                store = _store(address, port, rank, _ATTEMPT)
                if store.check([token]) and store.add(f"{token}/{rank}", 1) == 1:
                    store.set_timeout(patience)
                    return store
        return None

    if store := poll(look, patience.total_seconds(), _LONGEST):
        return store
    raise DistNetworkError(f"the first rank did not say within {patience} where it is")


def launcher_rendezvous(patience: timedelta) -> Rendezvous | None:
    """The rendezvous of the processes that torchrun or srun has started; None for one alone."""
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
    """Name of this node."""
    return platform.node()


def located(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Ranks and their nodes, as in "ranks 0-3, 8 on a, b".

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
