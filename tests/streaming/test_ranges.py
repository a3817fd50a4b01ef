"""Shards from a server that sends ranges: what is fetched, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest
from range_reads import IMAGES, QUICK, SHARD, data_bytes, key, loader, same, tars
from servers import Server
from sources import everything

from autotimm.format.index import read_index
from autotimm.format.manifest_file import read_manifest
from autotimm.streaming import range_fetcher, range_reader
from autotimm.streaming.dataset import SampleStream
from autotimm.streaming.loader import StreamLoader
from autotimm.streaming.open_shard import span
from autotimm.streaming.order import EpochOrder, Plan
from autotimm.streaming.store import ShardSource
from autotimm.structures import World


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_whole_shards_by_choice(
    workers: int, range_server: Server, range_shards: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    source = ShardSource(range_server.url, "train", cache, retry=QUICK, whole_shards=True)
    local = ShardSource(range_shards, "train")
    assert list(loader(source, workers)) == list(loader(local, workers))
    assert not [*cache.rglob("*.part")]
    sizes = {path.name: path.stat().st_size for path in range_shards.glob("train*.tar")}
    assert {
        name: sent for name, sent in range_server.sent.items() if name.endswith(".tar")
    } == sizes


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_all_nodes_together_fetch_the_data_once(
    nodes: int, range_server: Server, range_shards: Path, tmp_path: Path
) -> None:
    for rank in range(nodes):
        source = ShardSource(range_server.url, "train", tmp_path / str(rank), retry=QUICK)
        mine = loader(source, world=World(rank, nodes))
        local = loader(ShardSource(range_shards, "train"), world=World(rank, nodes))
        assert list(mine) == list(local)
    assert range_server.sent.total() <= 1.02 * data_bytes(range_shards)  # indices and manifest too
    once = tars(range_server)
    assert list(mine) == list(local)  # the second epoch: on one node all of it is there
    assert (
        tars(range_server) == once
        if nodes == 1
        else tars(range_server) < 1.5 * data_bytes(range_shards)
    )


def test_before_the_first_batch_nothing_else_is_fetched(
    range_server: Server, range_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK)
    sent: list[int] = []  # when the thread that downloads in the background begins
    prefetch = source.files.prefetch  # type: ignore[union-attr]
    monkeypatch.setattr(
        source.files,
        "prefetch",
        lambda *given, **more: (sent.append(range_server.sent.total()), prefetch(*given, **more)),
    )
    batches = iter(loader(source))
    next(batches)
    order = EpochOrder(source.shard_sizes, 4, 0, True)
    shards, indices = order.locate(Plan(order, World(), 4).positions(0))
    infos = read_manifest(range_shards).splits["train"].shards
    needed = (range_shards / "manifest.json").stat().st_size
    for number, index in zip(shards.tolist(), indices.tolist(), strict=True):
        rows = read_index((range_shards / infos[number].index).read_bytes(), infos[number])
        begin, end = span(rows[index].item())  # type: ignore[misc]
        needed += end - begin
    for number in {*shards.tolist()}:
        needed += (range_shards / infos[number].index).stat().st_size
    assert len(sent) == 1 and sent[0] <= needed
    next(batches)
    assert range_server.sent.total() > needed


@pytest.mark.parametrize("workers", [0, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("paired", [0.0, 0.5])
def test_order_and_content_are_those_of_the_folder(
    workers: int, paired: float, range_server: Server, range_shards: Path, tmp_path: Path
) -> None:
    """Two epochs, and what is left of the first one after a resume in its middle."""
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK)
    remote = loader(source, workers, paired=paired)
    local = loader(ShardSource(range_shards, "train"), paired=paired)
    expected = [list(local) for _ in range(2)]
    assert [list(remote) for _ in range(2)] == expected
    remote.close()
    first = loader(source, workers, paired=paired)
    batches = iter(first)
    assert [next(batches) for _ in range(5)] == expected[0][:5]
    state = first.state_dict()
    del batches
    first.close()
    other = ShardSource(range_server.url, "train", tmp_path / "other", retry=QUICK)
    resumed = loader(other, workers, paired=paired)
    resumed.load_state_dict(state)
    assert list(resumed) == expected[0][5:]
    resumed.close()


def test_neighbours_come_by_one_request(
    range_server: Server, range_shards: Path, tmp_path: Path
) -> None:
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK)
    stream = SampleStream(source, key, same, world=World(), batch_size=SHARD)
    local = SampleStream(ShardSource(range_shards, "train"), key, same, world=World(), batch_size=4)
    assert list(StreamLoader(stream)) == list(StreamLoader(local))
    asked = [count for name, count in range_server.requests.items() if name.endswith(".tar")]
    assert sum(asked) <= IMAGES / SHARD
    assert range_server.connections <= 70


def test_records_alone_are_read_too(
    range_server: Server, range_shards: Path, tmp_path: Path
) -> None:
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK)
    local = ShardSource(range_shards, "train")
    for k, size in enumerate(source.shard_sizes):
        for i in range(size):
            assert source.record(k, i) == local.record(k, i)
    assert tars(range_server) <= data_bytes(range_shards)


def test_a_whole_shard_in_the_cache_is_used(
    range_server: Server, range_shards: Path, tmp_path: Path
) -> None:
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK)
    source.verify()  # downloads them whole
    before = tars(range_server)
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK)
    assert everything(source) == everything(ShardSource(range_shards, "train"))
    assert tars(range_server) == before


def test_large_samples_do_not_pile_up(
    range_server: Server, range_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(range_fetcher, "_MOST_HELD", 1)
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK)
    assert list(loader(source)) == list(loader(ShardSource(range_shards, "train")))


def test_samples_are_asked_for_ahead_beside_whole_shards(
    range_server: Server, range_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of whole shards are not read here, and do not count as read ahead."""
    monkeypatch.setattr(range_reader, "_AHEAD", 8)
    cache = tmp_path / "cache"
    source = ShardSource(range_server.url, "train", cache, retry=QUICK)
    for k in range(9):
        source.path(k)
    source = ShardSource(range_server.url, "train", cache, retry=QUICK)
    batches = iter(loader(source))
    found = [next(batches) for _ in range(10)]
    made = source._ranges._reader._made  # type: ignore[union-attr]
    assert next(made.steps, None) is None and not made.planned  # type: ignore[union-attr]
    assert found + list(batches) == list(loader(ShardSource(range_shards, "train")))
