"""Ranks that hear the same verdict, whoever comes."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import HashStore

from autotimm.training.meeting import Meeting, located

SOON = timedelta(seconds=0.3)


def together(size: int, act: Callable[[Meeting], Any], ranks: range | None = None) -> list[Any]:
    """What ``act`` returns or raises on each of the ranks, which are threads."""
    store = HashStore()
    meetings = [Meeting(store, rank, size) for rank in ranks or range(size)]

    def caught(meeting: Meeting) -> Any:
        try:
            return act(meeting)
        except TimeoutError as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(caught, meetings))


def test_all_ranks_hear_what_the_first_makes_of_their_reports() -> None:
    judged = []

    def judge(reports: list[Any]) -> str:
        judged.append(reports)
        return "-".join(reports)

    def twice(meeting: Meeting) -> tuple[str, str]:
        first = meeting.meet(f"a{meeting.rank}", judge)
        return first, meeting.meet(f"b{meeting.rank}", judge)

    assert together(3, twice) == [("a0-a1-a2", "b0-b1-b2")] * 3
    assert judged == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]


def test_who_does_not_come_is_waited_for_and_then_left_out() -> None:
    told = together(3, lambda m: m.meet(m.rank, lambda reports: reports, SOON), range(2))
    assert told == [[0, 1, None]] * 2


def test_a_silent_first_rank_is_not_waited_for_for_ever() -> None:
    (told,) = together(3, lambda m: m.meet(m.rank, len, SOON), range(2, 3))
    assert isinstance(told, TimeoutError)


def test_nobody_leaves_before_the_first_rank_has_said_it() -> None:
    left: list[int] = []

    def act(meeting: Meeting) -> None:
        meeting.meet(0, len)
        if meeting.rank == 0:
            time.sleep(0.2)
            left.append(0)  # says it
        meeting.part()
        if meeting.rank:
            left.append(meeting.rank)

    together(3, act)
    assert left[0] == 0
    assert sorted(left) == [0, 1, 2]


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
