"""The cache folder: limits and eviction, processes that share it or are killed, full disks."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from servers import Server, serve, wait_until

from autotimm.files.retry import Retry
from autotimm.streaming import cache as cache_module
from autotimm.streaming.cache import Cache, RemoteFile
from autotimm.structures import InputError

QUICK = Retry(attempts=3, wait=0.01, stall=5)
SIZE = 1000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    for number in range(8):
        (tmp_path / "server" / f"{number}.tar").write_bytes(os.urandom(SIZE))
    with serve(tmp_path / "server") as server:
        yield server


@pytest.fixture
def files(server: Server) -> list[RemoteFile]:
    return [
        RemoteFile(f"{server.url}/{path.name}", sha256(path), ".tar", SIZE, SIZE)
        for path in sorted(server.folder.iterdir())
    ]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cached(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_the_least_recently_used_make_room(files: list[RemoteFile], tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", 3 * SIZE, QUICK)
    cache.folder.mkdir()
    others = {"notes.txt", "a.tar", "f" * 64, "f" * 64 + ".tar.gz", "." + "f" * 63 + ".tar.x.tmp"}
    for name in others:
        (cache.folder / name).write_bytes(bytes(9 * SIZE))
    for file in files[:3]:
        os.utime(cache.fetch(file), (1, files.index(file)))
    cache.fetch(files[0])  # used again, so the second is now the least recently used
    cache.fetch(files[3])
    assert cached(cache.folder) == others | {files[k].name for k in (0, 2, 3)}
    cache.fetch(files[4])
    assert cached(cache.folder) == others | {files[k].name for k in (0, 3, 4)}


def test_the_limit_holds_at_every_moment(
    files: list[RemoteFile], server: Server, tmp_path: Path
) -> None:
    """Also during concurrent downloads, each of which counts in full from its beginning."""
    cache = Cache(tmp_path / "c", 3 * SIZE + 500, QUICK)
    cache.folder.mkdir()
    server.delay = 0.05
    most, over = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.is_set():
            total = 0
            for path in cache.folder.glob("*.t*"):
                try:
                    total += path.stat().st_size
                except FileNotFoundError:
                    continue
            most = max(most, total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    readers = [
        threading.Thread(target=lambda k=k: [cache.open(files[j]).close() for j in (k, k ^ 5)])
        for k in range(8)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    over.set()
    watcher.join()
    assert SIZE <= most <= cache.limit  # type: ignore[operator]


def test_what_is_fetched_ahead_takes_no_room_from_what_is_kept(
    files: list[RemoteFile], tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "c", 3 * SIZE, QUICK)
    keep = {files[0].name, files[1].name}
    for file in files[:3]:
        cache.fetch(file)
    assert cache.fetch_ahead(files[3], keep)
    assert cached(cache.folder) == keep | {files[3].name}
    assert not cache.fetch_ahead(files[4], keep | {files[3].name})
    assert cached(cache.folder) == keep | {files[3].name}
    cache.fetch(files[4], keep)  # urgent, but it removes the kept files last
    assert cached(cache.folder) == keep | {files[4].name}
    cache.fetch(files[5], keep | {files[4].name})
    assert files[5].name in cached(cache.folder)


def test_a_reader_fetches_again_what_has_made_room(
    files: list[RemoteFile], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "c", SIZE, QUICK)
    fetch = Cache.fetch

    def and_gone(self: Cache, *arguments: Any) -> Path:
        path = fetch(self, *arguments)
        if server.requests["0.tar"] < 2:
            path.unlink()
        return path

    monkeypatch.setattr(Cache, "fetch", and_gone)
    with cache.open(files[0]) as file:
        (tmp_path / "c" / files[0].name).unlink()  # an open file stays readable
        assert file.read() == (server.folder / "0.tar").read_bytes()
    assert server.requests["0.tar"] == 2


def _fetch(cache: Cache, file: RemoteFile, results: Any) -> None:
    results.put(sha256(cache.fetch(file)))


def test_another_process_takes_over_from_one_that_is_killed(
    files: list[RemoteFile], server: Server, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "c", 3 * SIZE, QUICK)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    server.faults["0.tar"] = ["stall"]
    first = context.Process(target=_fetch, args=(cache, files[0], results))
    first.start()
    wait_until(lambda: server.requests["0.tar"])
    wait_until(lambda: list(cache.folder.glob(".*.tmp")))
    others = [context.Process(target=_fetch, args=(cache, files[0], results)) for _ in range(3)]
    for other in others:
        other.start()
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    assert [results.get(timeout=60) for _ in others] == [files[0].sha256] * 3
    for process in (first, *others):
        process.join()
    assert server.requests["0.tar"] == 2
    assert cached(cache.folder) == {files[0].name}


def test_what_a_killed_process_left_is_removed_and_not_counted(
    files: list[RemoteFile], tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "c", 2 * SIZE, QUICK)
    cache.folder.mkdir()
    (cache.folder / f".{files[7].name}.abc.tmp").write_bytes(bytes(5 * SIZE))
    cache.fetch(files[0])
    cache.fetch(files[1])
    assert cached(cache.folder) == {files[0].name, files[1].name}


def test_a_full_disk_makes_room_or_is_said(
    files: list[RemoteFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 2 * SIZE
    folder = tmp_path / "c"

    def full(*arguments: Any) -> None:
        if sum(path.stat().st_size for path in folder.glob("*.tar")) + SIZE > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        download(*arguments)

    download = cache_module._download
    monkeypatch.setattr(cache_module, "_download", full)
    cache = Cache(folder, None, QUICK)
    cache.fetch(files[0])
    cache.fetch(files[1])
    with pytest.raises(InputError, match=r"no space left for .*/2\.tar: set cache_limit, or"):
        cache.fetch(files[2])
    assert cached(folder) == {files[0].name, files[1].name}
    cache = Cache(folder, 9 * SIZE, QUICK)
    keep = {files[0].name, files[1].name}
    with pytest.raises(InputError, match=r"no space left for .*/2\.tar: free some, or set cache_d"):
        cache.fetch_ahead(files[2], keep)
    assert cached(folder) == keep
    cache.fetch(files[2])
    assert files[2].name in cached(folder) and len(cached(folder)) == 2


def test_a_disk_that_is_full(files: list[RemoteFile], server: Server, tmp_path: Path) -> None:
    """On a real full file system, where the last write() of a file writes only a part."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = 16 << 10
    mount = ["mount", "-t", "tmpfs", "-o", f"size={5 * size}", "none", str(folder)]
    if (
        os.geteuid()
        or not shutil.which("mount")
        or subprocess.run(mount, capture_output=True).returncode
    ):
        pytest.skip("this needs a small disk")
    try:
        large = []
        for number in range(4):
            tar = server.folder / f"large-{number}.tar"
            tar.write_bytes(os.urandom(2 * size - 100))
            large.append(
                replace(
                    files[0],
                    url=f"{server.url}/{tar.name}",
                    sha256=sha256(tar),
                    at_most=2 * size,
                    size=2 * size - 100,
                )
            )
        cache = Cache(folder, None, QUICK)
        for file in large[:2]:
            cache.fetch(file)
        with pytest.raises(
            InputError, match=r"no space left for .*-2\.tar: set cache_limit, or"
        ) as error:
            cache.fetch(large[2])
        assert "\n" not in str(error.value) and server.requests["large-2.tar"] == 1
        assert cached(folder) == {file.name for file in large[:2]}
        cache = Cache(folder, 99 * size, QUICK)
        assert sha256(cache.fetch(large[2])) == large[2].sha256
        assert large[0].name not in cached(folder)
        for path in folder.glob("*.tar"):
            path.unlink()
        (folder / "other").write_bytes(bytes(4 * size))
        with pytest.raises(
            InputError, match=r"no space left for .*-3\.tar: free some, or"
        ) as error:
            cache.fetch(large[3])
        assert "cache_limit" not in str(error.value)
        assert cached(folder) == {"other"}
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kind", [Path.mkdir, os.mkfifo])
def test_the_cache_refuses_anything_but_regular_files(
    kind: Any, files: list[RemoteFile], server: Server, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "c", None, QUICK)
    cache.folder.mkdir()
    kind(cache.folder / files[0].name)
    with pytest.raises(InputError, match=r"\.tar: cannot be used as a cache: not a regular file"):
        cache.fetch(files[0])
    assert not server.requests


def test_a_folder_that_cannot_be_one(files: list[RemoteFile], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"file/.*: cannot be used as a cache: Not a directory"):
        Cache(tmp_path / "file" / "c", None, QUICK).fetch(files[0])
