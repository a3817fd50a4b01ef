"""Servers and networks that fail while shards come in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from range_reads import IMAGES, QUICK, SHARD, loader
from servers import Fault, Server
from sources import everything

from autotimm.files import ranges, retry
from autotimm.files.retry import Retry
from autotimm.images.decode import DataError
from autotimm.streaming import range_fetcher, range_reader
from autotimm.streaming.store import ShardSource
from autotimm.structures import InputError

PASSING: list[Fault] = [
    *(500, 503, 429, 408, "stall", "trickle", "cut", "other", "close", "headers", "continue"),
    "empty",
]


@pytest.mark.parametrize("fault", PASSING)
def test_passing_faults_are_tried_again(
    fault: Fault, range_server: Server, range_shards: Path, tmp_path: Path
) -> None:
    patience = Retry(attempts=3, wait=0.01, stall=0.3 if isinstance(fault, str) else 20)
    source = ShardSource(
        range_server.url + "?key=Secret12", "train", tmp_path / "c", retry=patience
    )
    known = everything(ShardSource(range_shards, "train"))
    source.read(1, 0)
    range_server.faults = (
        {"train-000000.tar": [fault, fault]} if fault != "other" else {"train-000000.tar": [fault]}
    )
    assert bytes(source.read(0, 0)[0]) == known[0][0]
    range_server.faults = {"train-000001.tar": [fault] * 9}
    with pytest.raises((InputError, DataError), match=r"train-000001\.tar") as error:
        source.read(1, 1)
    assert "Secret12" not in str(error.value) and "\n" not in str(error.value)
    assert isinstance(error.value, DataError) == (fault == "other")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (403, "403"),
        ("why", r"403 Forbidden \(RequestTimeTooSkewed, late \[2J\): set the clock of this"),
        ("nowhere", "301 .*: a redirect that names no address"),
        ("ftp://127.0.0.1/a.tar?key=Secret12", "ftp://127.0.0.1/a.tar is not an http"),
        ("file:///etc/passwd", "file:///etc/passwd is not an http"),
        (404, r"the server has no such file, but manifest\.json names it"),
    ],
)
def test_lasting_faults_are_told_at_once(
    fault: Fault, reason: str, range_server: Server, tmp_path: Path
) -> None:
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK)
    range_server.faults = {"train-000000.tar": [fault] * 9}
    with pytest.raises(InputError, match=rf"train-000000\.tar: .*{reason}") as error:
        source.read(0, 0)
    assert range_server.requests["train-000000.tar"] == 1
    assert "Secret12" not in str(error.value)


def test_redirects_are_followed(range_server: Server, range_shards: Path, tmp_path: Path) -> None:
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK)
    range_server.faults = {"train-000000.tar": [f"{range_server.url}/elsewhere/train-000000.tar"]}
    known = ShardSource(range_shards, "train").read(0, 0)
    assert source.read(0, 0) == known
    range_server.faults = {"train-000000.tar": [f"{range_server.url}/train-000000.tar"] * 99}
    with pytest.raises(InputError, match="redirects without an end"):
        source.read(0, 1)


def test_a_server_that_asks_to_wait_is_left_alone(
    range_server: Server, range_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    sleep = retry.time.sleep
    monkeypatch.setattr(retry.time, "sleep", lambda s: (slept.append(s), sleep(s)))
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=Retry(wait=0.01))
    range_server.faults = {path.name: ["wait"] for path in range_shards.glob("train*.tar")}
    assert list(loader(source)) == list(loader(ShardSource(range_shards, "train")))
    assert 0 < sum(s >= 1 for s in slept) < IMAGES // SHARD  # one wait for several answers


def test_a_kept_connection_may_be_dropped(
    range_server: Server, range_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which costs no try: there is one connection, and only one try is allowed."""
    monkeypatch.setattr(range_reader, "_IN_FLIGHT", 1)
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=Retry(1))
    batches = iter(loader(source))
    found = [next(batches) for _ in range(3)]
    names = [path.name for path in range_shards.glob("train*.tar")]
    range_server.faults = {name: ["close"] for name in names}
    assert found + list(batches) == list(loader(ShardSource(range_shards, "train")))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_server_that_forgets_ranges_is_told_once(
    workers: int,
    range_server: Server,
    range_shards: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK)
    remote = loader(source, workers)
    batches = iter(remote)
    found = [next(batches)]
    range_server.ranges = False
    found += batches
    local = loader(ShardSource(range_shards, "train"))
    assert [found, list(remote)] == [list(local), list(local)]
    remote.close()
    if not workers:  # pytest catches this process's own log
        assert list((tmp_path / "cache").glob("*.tar"))
    assert capfd.readouterr().err.count("sends no ranges of it") <= 1


def test_an_interrupt_or_an_error_leaves_nobody_waiting(
    range_server: Server, range_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same source is read again, as in a notebook."""
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK)
    known = list(loader(ShardSource(range_shards, "train")))
    batches = iter(loader(source))
    assert next(batches) == known[0]
    with monkeypatch.context() as patch:
        patch.setattr(range_fetcher.Fetcher, "_take", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(batches)
    assert list(loader(source)) == known


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_request_that_cannot_be_sent_leaves_nobody_waiting(
    range_server: Server, range_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK)
    known = list(loader(ShardSource(range_shards, "train")))
    real, count = ranges.Ranges.ask, 0

    def ask(*given: Any) -> None:
        nonlocal count
        count += 1
        if count % 2:
            raise ValueError("no such letter")
        real(*given)

    monkeypatch.setattr(ranges.Ranges, "ask", ask)
    assert list(loader(source)) == known


def test_an_index_that_cannot_be_had_holds_up_its_readers_alone(
    range_server: Server, tmp_path: Path
) -> None:
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK)
    source.announce(iter([[(0, 0)], [(0, 1)], [(1, 0), (2, 0)]]))
    range_server.faults = {"train-000001.idx.npy": [503] * 99}
    for place in ((0, 0), (0, 1), (2, 0)):
        source.read(*place)
    assert range_server.requests["train-000001.idx.npy"] == QUICK.attempts  # of one download ahead
    with pytest.raises(InputError, match=r"train-000001\.idx\.npy: cannot be downloaded"):
        source.read(1, 0)


def test_a_busy_server_is_not_asked_again_at_once(
    range_server: Server, range_shards: Path, tmp_path: Path
) -> None:
    """Neither for the sample that is waited for, nor for those after it."""
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=Retry(wait=0.3))
    source.read(0, 0)
    range_server.faults = {path.name: [503] * 99 for path in range_shards.glob("train*.tar")}
    source.announce(iter([[(k, 1) for k in range(12)]]))
    fetcher = source._ranges._reader._made.fetcher  # type: ignore[union-attr]
    source.read(0, 0)  # from the cache
    while fetcher._ranges._busy:
        fetcher.receive(1)
    before = tars_asked(range_server)
    for _ in range(20):
        source.read(0, 0)
    assert tars_asked(range_server) == before


def tars_asked(range_server: Server) -> int:
    return sum(count for name, count in range_server.requests.items() if name.endswith(".tar"))
