"""All ranks get the same verdict, even if some do not come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import HashStore, TCPStore

from autotimm.distributed import rendezvous as meeting
from autotimm.distributed.rendezvous import Rendezvous, located, rendezvous_at

SOON = timedelta(seconds=0.3)


def together(size: int, act: Callable[[Rendezvous], Any], ranks: range | None = None) -> list[Any]:
    """The result or the exception of ``act`` on each rank. The ranks are threads."""
    store = HashStore()
    meetings = [Rendezvous(store, rank, size) for rank in ranks or range(size)]

    def caught(meeting: Rendezvous) -> Any:
        try:
            return act(meeting)
        except TimeoutError as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(caught, meetings))


def test_all_ranks_get_the_verdict_of_the_first() -> None:
    judged = []

    def compare(reports: list[Any]) -> str:
        judged.append(reports)
        return "-".join(reports)

    def twice(meeting: Rendezvous) -> tuple[str, str]:
        first = meeting.exchange(f"a{meeting.rank}", compare)
        return first, meeting.exchange(f"b{meeting.rank}", compare)

    assert together(3, twice) == [("a0-a1-a2", "b0-b1-b2")] * 3
    assert judged == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]


def test_the_report_of_a_missing_rank_is_none_after_a_wait() -> None:
    verdicts = together(3, lambda m: m.exchange(m.rank, lambda reports: reports, SOON), range(2))
    assert verdicts == [[0, 1, None]] * 2


def test_the_wait_for_a_missing_first_rank_ends() -> None:
    (error,) = together(3, lambda m: m.exchange(m.rank, len, SOON), range(2, 3))
    assert isinstance(error, TimeoutError)


def test_no_rank_leaves_before_the_first_one_has_printed_the_error() -> None:
    left: list[int] = []

    def act(meeting: Rendezvous) -> None:
        meeting.exchange(0, len)
        if meeting.rank == 0:
            time.sleep(0.2)
            left.append(0)  # prints the error
        meeting.part()
        if meeting.rank:
            left.append(meeting.rank)

    together(3, act)
    assert left[0] == 0
    assert sorted(left) == [0, 1, 2]


@pytest.mark.parametrize("left", ["gone", "another's", "alive"])
def test_ranks_ignore_the_entries_of_an_earlier_start_in_torchruns_store(
    left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = "127.0.0.1"
    board = TCPStore(local, 0, is_master=True, wait_for_workers=False)
    other = TCPStore(local, 0, is_master=True, wait_for_workers=False)
    port = other.port
    if left == "gone":
        del other
    elif left == "alive":  # its first rank does not know yet that the second one is dead
        other.set("old", "")
        other.add("old/1", 1)
    board.set("autotimm/where", f'[{port},"old"]')
    for name, value in {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",  # not reliable, because another node may count 1
        "MASTER_ADDR": local,
        "MASTER_PORT": str(board.port),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(meeting, "_made", {})
    alone = {"wait_for_workers": False, "timeout": SOON}

    def come(rank: int) -> TCPStore:
        time.sleep(0 if rank else 0.3)  # the second rank looks before the first one comes
        return meeting._apart_from_torchrun(local, board.port, rank, timedelta(minutes=1))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(come, range(2))
    assert first.port == second.port not in (board.port, port)
    second.set("message", "yes")
    assert first.get("message") == b"yes"
    # torch.distributed and a second rendezvous use the same variables.
    assert os.environ["MASTER_PORT"] == str(first.port)
    assert TCPStore(local, first.port, is_master=True, multi_tenant=True, **alone).check(
        ["message"]
    )
    assert rendezvous_at(local, first.port, 0, 2).store.check(["message"]) is False
    assert os.environ["MASTER_PORT"] == str(first.port)


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ([2], "rank 2 on b"),
        ([0, 1, 3], "ranks 0-1, 3 on a, b"),
        ([0, 2, 3, 4, 5, 6, 7], "ranks 0, 2-7 on a, b, c, d and 2 more"),
    ],
)
def test_ranks_are_named_with_their_nodes(ranks: list[int], text: str) -> None:
    assert located(ranks, ["a", "a", "b", "b", "c", "d", "e", "f"]) == text
