"""Shards from a server that sends ranges: what is fetched, and what may go wrong."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import ssl
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import Fault, Server, serve
from sources import everything

from autotimm.data.synthetic import make_dataset
from autotimm.files import answers, connection, ranges, retry, s3
from autotimm.files.retry import Retry
from autotimm.format.index import read_index
from autotimm.format.manifest_file import read_manifest
from autotimm.images.decode import DataError
from autotimm.sharding.cli import shard
from autotimm.streaming import cached_shards, range_fetcher, range_reader, sparse
from autotimm.streaming.dataset import SampleStream
from autotimm.streaming.loader import StreamLoader
from autotimm.streaming.open_shard import span
from autotimm.streaming.order import EpochOrder, Plan
from autotimm.streaming.store import ShardSource
from autotimm.structures import InputError, World

QUICK = Retry(attempts=3, wait=0.01)
IMAGES, SHARD = 48, 4


@pytest.fixture(scope="module")
def shard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted")
    make_dataset(folder / "coco", train=IMAGES, val=3, size=200)
    shard(folder / "coco", folder / "shards", samples_per_shard=SHARD)
    return folder / "shards"


@pytest.fixture
def server(shard_folder: Path, tmp_path: Path) -> Iterator[Server]:
    with serve(shutil.copytree(shard_folder, tmp_path / "copy")) as server:
        server.ranges = True
        yield server


def tars(server: Server) -> int:
    """The bytes of tars that were sent."""
    return sum(size for name, size in server.sent.items() if name.endswith(".tar"))


def data_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("train*.tar"))


def _key(data: Any, record: Any, rng: np.random.Generator) -> tuple[int, int, float]:
    return record["image_id"], zlib.crc32(data), rng.random()


def _pair(*given: Any, other: Any = None) -> Any:
    return _key(*given), other and _key(*other, given[-1])


def _same(samples: list[Any], padding: list[bool]) -> list[Any]:
    return samples


def loader(
    source: Any, workers: int = 0, world: World | None = None, paired: float = 0.0
) -> StreamLoader:
    load = _pair if paired else _key
    stream = SampleStream(
        source,
        load,
        _same,
        world=world or World(),
        batch_size=4,
        seed=4,
        shuffle=True,
        paired=paired,
    )
    context = "fork" if workers else None
    return StreamLoader(stream, num_workers=workers, multiprocessing_context=context)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_whole_shards_by_choice(
    workers: int, server: Server, shard_folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    source = ShardSource(server.url, "train", cache, retry=QUICK, whole_shards=True)
    local = ShardSource(shard_folder, "train")
    assert list(loader(source, workers)) == list(loader(local, workers))
    assert not [*cache.rglob("*.part")]
    sizes = {path.name: path.stat().st_size for path in shard_folder.glob("train*.tar")}
    assert {name: sent for name, sent in server.sent.items() if name.endswith(".tar")} == sizes


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_all_nodes_together_fetch_the_data_once(
    nodes: int, server: Server, shard_folder: Path, tmp_path: Path
) -> None:
    for rank in range(nodes):
        source = ShardSource(server.url, "train", tmp_path / str(rank), retry=QUICK)
        mine = loader(source, world=World(rank, nodes))
        local = loader(ShardSource(shard_folder, "train"), world=World(rank, nodes))
        assert list(mine) == list(local)
    assert server.sent.total() <= 1.02 * data_bytes(shard_folder)  # indices and manifest too
    once = tars(server)
    assert list(mine) == list(local)  # the second epoch: on one node all of it is there
    assert tars(server) == once if nodes == 1 else tars(server) < 1.5 * data_bytes(shard_folder)


def test_before_the_first_batch_nothing_else_is_fetched(
    server: Server, shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    sent: list[int] = []  # when the thread that downloads in the background begins
    prefetch = source.files.prefetch  # type: ignore[union-attr]
    monkeypatch.setattr(
        source.files,
        "prefetch",
        lambda *given, **more: (sent.append(server.sent.total()), prefetch(*given, **more)),
    )
    batches = iter(loader(source))
    next(batches)
    order = EpochOrder(source.shard_sizes, 4, 0, True)
    shards, indices = order.locate(Plan(order, World(), 4).positions(0))
    infos = read_manifest(shard_folder).splits["train"].shards
    needed = (shard_folder / "manifest.json").stat().st_size
    for number, index in zip(shards.tolist(), indices.tolist(), strict=True):
        rows = read_index((shard_folder / infos[number].index).read_bytes(), infos[number])
        begin, end = span(rows[index].item())  # type: ignore[misc]
        needed += end - begin
    for number in {*shards.tolist()}:
        needed += (shard_folder / infos[number].index).stat().st_size
    assert len(sent) == 1 and sent[0] <= needed
    next(batches)
    assert server.sent.total() > needed


@pytest.mark.parametrize("workers", [0, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("paired", [0.0, 0.5])
def test_order_and_content_are_those_of_the_folder(
    workers: int, paired: float, server: Server, shard_folder: Path, tmp_path: Path
) -> None:
    """Two epochs, and what is left of the first one after a resume in its middle."""
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    remote = loader(source, workers, paired=paired)
    local = loader(ShardSource(shard_folder, "train"), paired=paired)
    expected = [list(local) for _ in range(2)]
    assert [list(remote) for _ in range(2)] == expected
    remote.close()
    first = loader(source, workers, paired=paired)
    batches = iter(first)
    assert [next(batches) for _ in range(5)] == expected[0][:5]
    state = first.state_dict()
    del batches
    first.close()
    other = ShardSource(server.url, "train", tmp_path / "other", retry=QUICK)
    resumed = loader(other, workers, paired=paired)
    resumed.load_state_dict(state)
    assert list(resumed) == expected[0][5:]
    resumed.close()


def test_neighbours_come_by_one_request(server: Server, shard_folder: Path, tmp_path: Path) -> None:
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    stream = SampleStream(source, _key, _same, world=World(), batch_size=SHARD)
    local = SampleStream(
        ShardSource(shard_folder, "train"), _key, _same, world=World(), batch_size=4
    )
    assert list(StreamLoader(stream)) == list(StreamLoader(local))
    asked = [count for name, count in server.requests.items() if name.endswith(".tar")]
    assert sum(asked) <= IMAGES / SHARD
    assert server.connections <= 70


def test_records_alone_are_read_too(server: Server, shard_folder: Path, tmp_path: Path) -> None:
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    local = ShardSource(shard_folder, "train")
    for k, size in enumerate(source.shard_sizes):
        for i in range(size):
            assert source.record(k, i) == local.record(k, i)
    assert tars(server) <= data_bytes(shard_folder)


PASSING: list[Fault] = [
    *(500, 503, 429, 408, "stall", "trickle", "cut", "other", "close", "headers", "continue"),
    "empty",
]


@pytest.mark.parametrize("fault", PASSING)
def test_passing_faults_are_tried_again(
    fault: Fault, server: Server, shard_folder: Path, tmp_path: Path
) -> None:
    patience = Retry(attempts=3, wait=0.01, stall=0.3 if isinstance(fault, str) else 20)
    source = ShardSource(server.url + "?key=Secret12", "train", tmp_path / "c", retry=patience)
    known = everything(ShardSource(shard_folder, "train"))
    source.read(1, 0)
    server.faults = (
        {"train-000000.tar": [fault, fault]} if fault != "other" else {"train-000000.tar": [fault]}
    )
    assert bytes(source.read(0, 0)[0]) == known[0][0]
    server.faults = {"train-000001.tar": [fault] * 9}
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
    fault: Fault, reason: str, server: Server, tmp_path: Path
) -> None:
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    server.faults = {"train-000000.tar": [fault] * 9}
    with pytest.raises(InputError, match=rf"train-000000\.tar: .*{reason}") as error:
        source.read(0, 0)
    assert server.requests["train-000000.tar"] == 1
    assert "Secret12" not in str(error.value)


def test_redirects_are_followed(server: Server, shard_folder: Path, tmp_path: Path) -> None:
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    server.faults = {"train-000000.tar": [f"{server.url}/elsewhere/train-000000.tar"]}
    known = ShardSource(shard_folder, "train").read(0, 0)
    assert source.read(0, 0) == known
    server.faults = {"train-000000.tar": [f"{server.url}/train-000000.tar"] * 99}
    with pytest.raises(InputError, match="redirects without an end"):
        source.read(0, 1)


def test_a_server_that_asks_to_wait_is_left_alone(
    server: Server, shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    sleep = retry.time.sleep
    monkeypatch.setattr(retry.time, "sleep", lambda s: (slept.append(s), sleep(s)))
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=Retry(wait=0.01))
    server.faults = {path.name: ["wait"] for path in shard_folder.glob("train*.tar")}
    assert list(loader(source)) == list(loader(ShardSource(shard_folder, "train")))
    assert 0 < sum(s >= 1 for s in slept) < IMAGES // SHARD  # one wait for several answers


def test_a_kept_connection_may_be_dropped(
    server: Server, shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which costs no try: there is one connection, and only one try is allowed."""
    monkeypatch.setattr(range_reader, "_IN_FLIGHT", 1)
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=Retry(1))
    batches = iter(loader(source))
    found = [next(batches) for _ in range(3)]
    names = [path.name for path in shard_folder.glob("train*.tar")]
    server.faults = {name: ["close"] for name in names}
    assert found + list(batches) == list(loader(ShardSource(shard_folder, "train")))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_server_that_forgets_ranges_is_told_once(
    workers: int,
    server: Server,
    shard_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    remote = loader(source, workers)
    batches = iter(remote)
    found = [next(batches)]
    server.ranges = False
    found += batches
    local = loader(ShardSource(shard_folder, "train"))
    assert [found, list(remote)] == [list(local), list(local)]
    remote.close()
    if not workers:  # pytest catches this process's own log
        assert list((tmp_path / "cache").glob("*.tar"))
    assert capfd.readouterr().err.count("sends no ranges of it") <= 1


def test_what_is_damaged_in_the_cache_is_fetched_again(
    server: Server, shard_folder: Path, tmp_path: Path
) -> None:
    known = everything(ShardSource(shard_folder, "train"))
    everything(ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK))
    before = server.requests.total()
    for file in (tmp_path / "cache").glob("*.part"):
        content = bytearray(file.read_bytes())
        content[1000] ^= 1  # within the first image
        file.write_bytes(content)
    assert everything(ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)) == known
    assert server.requests.total() == before + 1 + IMAGES // SHARD
    again = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    assert everything(again) == known
    assert server.requests.total() == before + 2 + IMAGES // SHARD


def _killed(url: str, cache: Path) -> None:
    real, count = os.pwrite, 0

    def torn(fd: int, data: Any, offset: int) -> int:
        nonlocal count
        count += 1
        if count == 9:
            real(fd, data[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(fd, data, offset)

    sparse.os.pwrite = torn  # type: ignore[assignment]
    everything(ShardSource(url, "train", cache, retry=QUICK))


def test_a_kill_in_the_middle_of_a_write_loses_nothing(
    server: Server, shard_folder: Path, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_killed, args=(server.url, tmp_path / "cache"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before = tars(server)
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    assert everything(source) == everything(ShardSource(shard_folder, "train"))
    # What had come is not fetched again, but for what was being written.
    assert tars(server) <= data_bytes(shard_folder) + before // 8


def _read_all(source: ShardSource, found: Any) -> None:
    found.put(zlib.crc32(b"".join(image for image, _ in everything(source))))


def test_readers_and_their_forks_share_a_cache(
    server: Server, shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent has requests on their way when it is forked, and many to come."""
    monkeypatch.setattr(range_reader, "_IN_FLIGHT", 8)
    server.delay = 0.1
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    batches = iter(loader(source))
    begun = [next(batches) for _ in range(2)]
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    readers = [context.Process(target=_read_all, args=(source, found)) for _ in range(3)]
    for reader in readers:
        reader.start()
    begun += batches
    known = ShardSource(shard_folder, "train")
    crc = zlib.crc32(b"".join(image for image, _ in everything(known)))
    assert [found.get(timeout=60) for _ in readers] == [crc] * 3
    for reader in readers:
        reader.join()
    assert begun == list(loader(known))
    assert everything(source) == everything(known)


def test_the_cache_keeps_its_limit(
    server: Server, shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_shards, "WINDOW", 2)
    defaults = EpochOrder.__init__.__defaults__
    monkeypatch.setattr(EpochOrder.__init__, "__defaults__", (2, *defaults[1:]))  # type: ignore[index]
    limit = 5 * max(path.stat().st_size for path in shard_folder.glob("train*.tar"))
    folder, taken = tmp_path / "cache", []
    source = ShardSource(server.url, "train", folder, retry=QUICK, cache_limit=limit)
    remote, local = loader(source), loader(ShardSource(shard_folder, "train"))
    for _ in range(3):
        for batch, known in zip(remote, local, strict=True):
            assert batch == known
            parts = sum(path.stat().st_blocks * 512 for path in folder.glob("*.part"))
            others = sum(path.stat().st_size for path in folder.glob("*.npy"))
            taken.append(parts + others)
    assert not list(folder.glob("*.tar"))
    assert limit / 3 < max(taken) <= limit
    assert tars(server) <= 3 * data_bytes(shard_folder)


def test_a_cache_of_someone_else_is_read(
    server: Server, shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = everything(ShardSource(shard_folder, "train"))
    assert everything(ShardSource(server.url, "train", tmp_path / "c", retry=QUICK)) == known
    real = os.open

    def refused(path: Any, flags: int, *more: int) -> int:
        if str(path).endswith(".part") and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", path)
        return real(path, flags, *more)

    monkeypatch.setattr(sparse.os, "open", refused)
    before = tars(server)
    assert everything(ShardSource(server.url, "train", tmp_path / "c", retry=QUICK)) == known
    assert tars(server) == before


def test_a_full_disk_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sparse.os, "pwrite", full)
    source = ShardSource(server.url, "train", tmp_path / "c", retry=QUICK)
    with pytest.raises(InputError, match=r"no space left for .*: set cache_limit, or cache_dir"):
        source.read(0, 0)
    limited = ShardSource(server.url, "train", tmp_path / "c", retry=QUICK, cache_limit=1 << 30)
    limited.read(0, 0)  # which needs no cache, once some of it was removed


def test_a_whole_shard_in_the_cache_is_used(
    server: Server, shard_folder: Path, tmp_path: Path
) -> None:
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    source.verify()  # downloads them whole
    before = tars(server)
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    assert everything(source) == everything(ShardSource(shard_folder, "train"))
    assert tars(server) == before


def test_large_samples_do_not_pile_up(
    server: Server, shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(range_fetcher, "_MOST_HELD", 1)
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    assert list(loader(source)) == list(loader(ShardSource(shard_folder, "train")))


@pytest.fixture
def s3_url(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server as a store: it does not look at signatures, but refuses them as it is told to."""
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    return "s3://bucket/shards"


def test_signatures_that_expire_are_made_again(
    server: Server, s3_url: str, shard_folder: Path, tmp_path: Path
) -> None:
    source = ShardSource(s3_url, "train", tmp_path / "cache", retry=QUICK)
    server.faults = {path.name: ["expired"] for path in shard_folder.glob("train*.tar")}
    assert everything(source) == everything(ShardSource(shard_folder, "train"))
    assert not list((tmp_path / "cache").glob("*.tar"))
    server.faults = {"train-000000.tar": ["expired"] * 9}
    other = ShardSource(s3_url, "train", tmp_path / "other", retry=QUICK)
    with pytest.raises(
        InputError, match=r"000000\.tar: .*ExpiredToken, old\): get new keys"
    ) as told:
        other.read(0, 0)
    assert "Signature" not in str(told.value)


def test_a_store_that_refuses_signed_urls_is_asked_by_its_client(
    server: Server, s3_url: str, shard_folder: Path, tmp_path: Path
) -> None:
    source = ShardSource(s3_url, "train", tmp_path / "cache", retry=QUICK)
    server.faults = {"train-000000.tar": ["nowhere"]}
    assert everything(source) == everything(ShardSource(shard_folder, "train"))
    assert len(list((tmp_path / "cache").glob("*.tar"))) == IMAGES // SHARD


def test_a_store_behind_a_proxy_is_asked_by_its_client(
    server: Server,
    s3_url: str,
    shard_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server is the proxy, and the only way to a store whose name nobody else knows."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.invalid")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    source = ShardSource(s3_url, "train", tmp_path / "cache", retry=QUICK)
    assert everything(source) == everything(ShardSource(shard_folder, "train"))
    assert len(list((tmp_path / "cache").glob("*.tar"))) == IMAGES // SHARD


def test_a_store_whose_certificate_its_client_alone_knows(
    server: Server, s3_url: str, shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise ssl.SSLCertVerificationError(1, "unable to get local issuer certificate")

    monkeypatch.setattr(connection.Connection, "_connect", unknown)
    source = ShardSource(s3_url, "train", tmp_path / "cache", retry=QUICK)
    known = ShardSource(shard_folder, "train").read(0, 0)
    assert source.read(0, 0) == known
    plain = ShardSource(server.url, "train", tmp_path / "other", retry=QUICK)
    with pytest.raises(InputError, match="unable to get local issuer"):
        plain.read(0, 0)


def test_a_signature_that_ended_while_the_machine_slept_is_made_again(
    server: Server, s3_url: str, shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock of the store; a request that was sent before is asked for once more."""
    source = ShardSource(s3_url, "train", tmp_path / "cache", retry=QUICK)
    known = everything(ShardSource(shard_folder, "train"))
    assert bytes(source.read(0, 0)[0]) == known[0][0]
    fetcher = source._ranges._reader._made.fetcher  # type: ignore[union-attr]
    fetcher.ask((0, 1))
    while not fetcher._ranges._busy:
        pass
    (one,) = fetcher._places
    fetcher._ranges._failed.append((one, answers.AnswerError(403, "Request has expired")))
    real = s3.time.time
    monkeypatch.setattr(s3.time, "time", lambda: real() + 4000)
    for busy in [*fetcher._ranges._busy]:
        fetcher._ranges._end(busy, keep=False)
    assert bytes(source.read(0, 1)[0]) == known[1][0]
    refused = [(one, answers.AnswerError(403, "no"))]
    fetcher.ask((0, 2))
    (one,) = fetcher._places
    monkeypatch.setattr(fetcher._ranges, "wait", lambda _: [(one, refused[0][1])])
    with pytest.raises(InputError, match=r"000000\.tar: cannot be downloaded: no"):
        source.read(0, 2)


def test_an_interrupt_or_an_error_leaves_nobody_waiting(
    server: Server, shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same source is read again, as in a notebook."""
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    known = list(loader(ShardSource(shard_folder, "train")))
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
    server: Server, shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    known = list(loader(ShardSource(shard_folder, "train")))
    real, count = ranges.Ranges.ask, 0

    def ask(*given: Any) -> None:
        nonlocal count
        count += 1
        if count % 2:
            raise ValueError("no such letter")
        real(*given)

    monkeypatch.setattr(ranges.Ranges, "ask", ask)
    assert list(loader(source)) == known


def test_samples_are_asked_for_ahead_beside_whole_shards(
    server: Server, shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of whole shards are not read here, and do not count as read ahead."""
    monkeypatch.setattr(range_reader, "_AHEAD", 8)
    cache = tmp_path / "cache"
    source = ShardSource(server.url, "train", cache, retry=QUICK)
    for k in range(9):
        source.path(k)
    source = ShardSource(server.url, "train", cache, retry=QUICK)
    batches = iter(loader(source))
    found = [next(batches) for _ in range(10)]
    made = source._ranges._reader._made  # type: ignore[union-attr]
    assert next(made.steps, None) is None and not made.planned  # type: ignore[union-attr]
    assert found + list(batches) == list(loader(ShardSource(shard_folder, "train")))


def test_an_index_that_cannot_be_had_holds_up_its_readers_alone(
    server: Server, tmp_path: Path
) -> None:
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    source.announce(iter([[(0, 0)], [(0, 1)], [(1, 0), (2, 0)]]))
    server.faults = {"train-000001.idx.npy": [503] * 99}
    for place in ((0, 0), (0, 1), (2, 0)):
        source.read(*place)
    assert server.requests["train-000001.idx.npy"] == QUICK.attempts  # of one download ahead
    with pytest.raises(InputError, match=r"train-000001\.idx\.npy: cannot be downloaded"):
        source.read(1, 0)


def test_a_busy_server_is_not_asked_again_at_once(
    server: Server, shard_folder: Path, tmp_path: Path
) -> None:
    """Neither for the sample that is waited for, nor for those after it."""
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=Retry(wait=0.3))
    source.read(0, 0)
    server.faults = {path.name: [503] * 99 for path in shard_folder.glob("train*.tar")}
    source.announce(iter([[(k, 1) for k in range(12)]]))
    fetcher = source._ranges._reader._made.fetcher  # type: ignore[union-attr]
    source.read(0, 0)  # from the cache
    while fetcher._ranges._busy:
        fetcher.receive(1)
    before = tars_asked(server)
    for _ in range(20):
        source.read(0, 0)
    assert tars_asked(server) == before


def tars_asked(server: Server) -> int:
    return sum(count for name, count in server.requests.items() if name.endswith(".tar"))
