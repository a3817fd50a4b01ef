"""Who is named when ranks are gone, and which of those that are left says so."""

from __future__ import annotations

from datetime import timedelta

from torch.distributed import HashStore

from autotimm.training import lost
from autotimm.training.lost import ranks_lost
from autotimm.training.meeting import Meeting


class Gone(HashStore):
    """As when the process that serves the store has ended."""

    def set(self, *_: object) -> None:
        raise ConnectionError("Connection reset by peer")


HOSTS = ["a", "a", "b", "b", "c", "c"]


def test_a_node_that_is_lost_with_the_first_rank_is_told_of_by_each_that_is_left() -> None:
    told = {}
    for rank in range(1, 6):
        error = ranks_lost(Meeting(Gone(), rank, 6), HOSTS, RuntimeError("Connection closed"))
        assert error is not None and str(error).startswith("rank 0 on a has ended")
        told[rank] = error.tells
    assert told == {1: True, 2: True, 3: False, 4: True, 5: False}


def test_the_first_rank_names_those_that_do_not_come(monkeypatch) -> None:
    monkeypatch.setattr(lost, "PATIENCE", timedelta(seconds=0.1))
    store = HashStore()
    store.set("0/1", '"here"')
    error = ranks_lost(Meeting(store, 0, 3), HOSTS, RuntimeError("Timed out waiting 60000ms"))
    assert error is not None and error.tells
    assert str(error).startswith("rank 2 on b does not answer within the timeout")
    store.set("0/2", '"here"')
    assert ranks_lost(Meeting(store, 0, 3), HOSTS, RuntimeError("Timed out")) is None
