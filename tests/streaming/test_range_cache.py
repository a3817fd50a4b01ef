"""What the cache keeps of shards that come in parts: damage, kills, its limit, several readers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import zlib
from pathlib import Path
from typing import Any

import pytest
from range_reads import IMAGES, QUICK, SHARD, data_bytes, loader, tars
from servers import Server
from sources import everything

from autotimm.streaming import cached_shards, range_reader, sparse
from autotimm.streaming.order import EpochOrder
from autotimm.streaming.store import ShardSource
from autotimm.structures import InputError


def test_what_is_damaged_in_the_cache_is_fetched_again(
    range_server: Server, range_shards: Path, tmp_path: Path
) -> None:
    known = everything(ShardSource(range_shards, "train"))
    everything(ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK))
    before = range_server.requests.total()
    for file in (tmp_path / "cache").glob("*.part"):
        content = bytearray(file.read_bytes())
        content[1000] ^= 1  # within the first image
        file.write_bytes(content)
    assert (
        everything(ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK)) == known
    )
    assert range_server.requests.total() == before + 1 + IMAGES // SHARD
    again = ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK)
    assert everything(again) == known
    assert range_server.requests.total() == before + 2 + IMAGES // SHARD


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
    range_server: Server, range_shards: Path, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_killed, args=(range_server.url, tmp_path / "cache"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before = tars(range_server)
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK)
    assert everything(source) == everything(ShardSource(range_shards, "train"))
    # What had come is not fetched again, but for what was being written.
    assert tars(range_server) <= data_bytes(range_shards) + before // 8


def _read_all(source: ShardSource, found: Any) -> None:
    found.put(zlib.crc32(b"".join(image for image, _ in everything(source))))


def test_readers_and_their_forks_share_a_cache(
    range_server: Server, range_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent has requests on their way when it is forked, and many to come."""
    monkeypatch.setattr(range_reader, "_IN_FLIGHT", 8)
    range_server.delay = 0.1
    source = ShardSource(range_server.url, "train", tmp_path / "cache", retry=QUICK)
    batches = iter(loader(source))
    begun = [next(batches) for _ in range(2)]
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    readers = [context.Process(target=_read_all, args=(source, found)) for _ in range(3)]
    for reader in readers:
        reader.start()
    begun += batches
    known = ShardSource(range_shards, "train")
    crc = zlib.crc32(b"".join(image for image, _ in everything(known)))
    assert [found.get(timeout=60) for _ in readers] == [crc] * 3
    for reader in readers:
        reader.join()
    assert begun == list(loader(known))
    assert everything(source) == everything(known)


def bytes_on_disk(path: Path) -> int:
    try:
        status = path.stat()
    except FileNotFoundError:  # the loader's process has just made room
        return 0
    return status.st_blocks * 512 if path.suffix == ".part" else status.st_size


def test_the_cache_keeps_its_limit(
    range_server: Server, range_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_shards, "WINDOW", 2)
    defaults = EpochOrder.__init__.__defaults__
    monkeypatch.setattr(EpochOrder.__init__, "__defaults__", (2, *defaults[1:]))  # type: ignore[index]
    limit = 5 * max(path.stat().st_size for path in range_shards.glob("train*.tar"))
    folder, taken = tmp_path / "cache", []
    source = ShardSource(range_server.url, "train", folder, retry=QUICK, cache_limit=limit)
    remote, local = loader(source), loader(ShardSource(range_shards, "train"))
    for _ in range(3):
        for batch, known in zip(remote, local, strict=True):
            assert batch == known
            taken.append(sum(map(bytes_on_disk, [*folder.glob("*.part"), *folder.glob("*.npy")])))
    assert not list(folder.glob("*.tar"))
    assert limit / 3 < max(taken) <= limit
    assert tars(range_server) <= 3 * data_bytes(range_shards)


def test_a_cache_of_someone_else_is_read(
    range_server: Server, range_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = everything(ShardSource(range_shards, "train"))
    assert everything(ShardSource(range_server.url, "train", tmp_path / "c", retry=QUICK)) == known
    real = os.open

    def refused(path: Any, flags: int, *more: int) -> int:
        if str(path).endswith(".part") and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", path)
        return real(path, flags, *more)

    monkeypatch.setattr(sparse.os, "open", refused)
    before = tars(range_server)
    assert everything(ShardSource(range_server.url, "train", tmp_path / "c", retry=QUICK)) == known
    assert tars(range_server) == before


def test_a_full_disk_is_one_line(
    range_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sparse.os, "pwrite", full)
    source = ShardSource(range_server.url, "train", tmp_path / "c", retry=QUICK)
    with pytest.raises(InputError, match=r"no space left for .*: set cache_limit, or cache_dir"):
        source.read(0, 0)
    limited = ShardSource(
        range_server.url, "train", tmp_path / "c", retry=QUICK, cache_limit=1 << 30
    )
    limited.read(0, 0)  # which needs no cache, once some of it was removed
