"""Shards written to a store: the same bytes as in a folder, complete or absent, resumable."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from servers import wait_until
from shard_runs import COMMAND, PAIRS, WORK, big_source, files_of, shard, source, stop_after

from autotimm.files.retry import Retry, retried
from autotimm.sharding import cli
from autotimm.sharding.destinations import object_store, remote_folder
from autotimm.sharding.destinations.journal import entry_name
from autotimm.sharding.destinations.object_store import ObjectStore
from autotimm.sharding.destinations.remote_folder import RemoteFolder


class Disk(LocalFileSystem):
    """A folder as a file system in which unfinished files are visible."""

    protocol = "disk"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(str(path).removeprefix("disk://"))


fsspec.register_implementation("disk", Disk, clobber=True)

pytestmark = pytest.mark.usefixtures("one_worker")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store in this process's memory, which the command line refuses as useless."""
    real = cli.destination
    monkeypatch.setattr(
        cli, "destination", lambda text: RemoteFolder(text) if "memory:" in text else real(text)
    )
    yield "memory://bucket/shards"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    moto = pytest.importorskip("moto.server", reason="needs moto[server]")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A new bucket on a real S3 server, with credentials set as users set them."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    bucket = f"bucket{abs(hash(tmp_path))}"
    files.mkdir(bucket)
    return f"s3://{bucket}/deep/shards"


def stored(url: str) -> dict[str, bytes]:
    """The content of a URL's folder: path -> bytes."""
    files, root = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    found = files.find(root) if files.exists(root) else []
    return {
        path.removeprefix(files._strip_protocol(root)).lstrip("/"): files.cat_file(path)
        for path in found
    }


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return f"disk://{tmp_path}/store"
    return request.getfixturevalue(request.param)


def stores(tier_of_s3: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """Runs a test on each kind of store; a real server is slow, so it is marked."""
    kinds = ["memory", "disk", pytest.param("s3", marks=tier_of_s3)]
    return pytest.mark.parametrize("url", kinds, indirect=True)


@pytest.fixture
def truth(tmp_path: Path) -> dict[str, bytes]:
    assert shard(source(tmp_path / "coco"), tmp_path / "truth", *PAIRS, "--workers", 1) == 0
    return files_of(tmp_path / "truth")


def workers(url: str) -> list[str]:
    """Two processes where possible: others cannot see this one's memory and class."""
    return ["--workers", "2" if url.startswith("s3:") else "1"]


@pytest.fixture(autouse=True)
def _own_scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives each test its own temporary folder, without other processes' files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("scratch")))


def scratch() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("autotimm-shard-*"))


@stores(pytest.mark.slow)
def test_a_store_gets_the_bytes_of_a_folder(
    tmp_path: Path, url: str, truth: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert shard(tmp_path / "coco", url, *PAIRS, *workers(url)) == 0
    out, err = capsys.readouterr()
    assert stored(url) == truth and not err and f"wrote {url}/manifest.json" in out
    assert not scratch()
    assert shard(tmp_path / "coco", url, *PAIRS) == 0
    assert "already complete" in capsys.readouterr().out
    for flags in ((), ("--overwrite",)):
        assert shard(tmp_path / "coco", url, "--samples-per-shard", 3, *flags) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "give another URL, or delete it with the store's" in err
    assert stored(url) == truth


@stores(pytest.mark.slow)
def test_a_stopped_run_to_a_store_goes_on(
    tmp_path: Path,
    url: str,
    truth: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop_after(3, tmp_path / "coco", url, *PAIRS, monkeypatch=monkeypatch)
    there = stored(url)
    assert "manifest.json" not in there and f"{WORK}/job.json" in there
    assert sum(name.endswith(".tar") for name in there) == 3 and not scratch()
    capsys.readouterr()
    assert shard(tmp_path / "coco", url, "--samples-per-shard", 3) == 2
    assert "--samples-per-shard was 2, now 3" in capsys.readouterr().err
    assert shard(tmp_path / "coco", url, *PAIRS, "--json", *workers(url)) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kept_shards"], told["written_shards"]) == (3, 2)
    assert stored(url) == truth


@stores(pytest.mark.release)
def test_an_unfinished_run_in_a_store_can_be_discarded(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    coco = source(tmp_path / "coco")
    stop_after(4, coco, url, "--samples-per-shard", 1, monkeypatch=monkeypatch)
    flags = ["--samples-per-shard", 6, *workers(url)]
    assert shard(coco, url, *flags, "--overwrite") == 0
    assert shard(coco, tmp_path / "fresh", *flags) == 0
    assert stored(url) == files_of(tmp_path / "fresh")


def test_a_shard_that_the_store_lost_is_sent_again(
    tmp_path: Path, memory: str, truth: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(3, tmp_path / "coco", memory, *PAIRS, monkeypatch=monkeypatch)
    files, root = fsspec.url_to_fs(memory)
    files.rm_file(f"{root}/train-000000.tar")
    files.pipe_file(f"{root}/train-000001.tar", b"cut")
    files.pipe_file(f"{root}/{WORK}/{entry_name('train-000002.tar')}", b"broken")
    assert shard(tmp_path / "coco", memory, *PAIRS) == 0
    assert stored(memory) == truth


@stores(pytest.mark.release)
def test_parts_go_to_a_store(tmp_path: Path, url: str, truth: dict[str, bytes]) -> None:
    for part in ("2/2", "1/2"):
        assert shard(tmp_path / "coco", url, *PAIRS, "--part", part, "--workers", 1) == 0
        assert "manifest.json" not in stored(url)
    assert shard(tmp_path / "coco", url, *PAIRS, *workers(url)) == 0
    assert stored(url) == truth


@pytest.mark.release
def test_killed_while_it_sends_it_goes_on(tmp_path: Path, s3: str) -> None:
    coco, flags = big_source(tmp_path / "coco", 36), ["--samples-per-shard", 3]
    assert shard(coco, tmp_path / "truth", *flags) == 0
    command = [*COMMAND, *map(str, (coco, s3, *flags, "--workers", 2))]
    with subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path)}) as process:
        files, root = fsspec.url_to_fs(s3, use_listings_cache=False)

        def under_way() -> bool:
            assert process.poll() is None
            return len(files.glob(f"{root}/{WORK}/train-*.json")) >= 2

        wait_until(under_way)
        process.send_signal(signal.SIGKILL)
    assert "manifest.json" not in stored(s3)
    done = subprocess.run(
        [*command, "--json"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    told = json.loads(done.stdout)
    assert told["kept_shards"] >= 2 and told["kept_shards"] + told["written_shards"] == 12
    assert stored(s3) == files_of(tmp_path / "truth")
    assert not list(tmp_path.glob("autotimm-shard-*")), "what the killed run left went"


class Flaky:
    """A file system on which every request fails a few times before it succeeds."""

    def __init__(self, files: Any, failures: int, error: Exception) -> None:
        self.files, self.failures, self.error = files, failures, error
        self.left: dict[Any, int] = {}

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.files, name)

        def request(*args: Any, **options: Any) -> Any:
            key = (name, str(args[:1]))
            if self.left.setdefault(key, self.failures):
                self.left[key] -= 1
                raise self.error
            return real(*args, **options)

        return request


def impatiently(attempt: Any, retry: Retry, *others: Any) -> Any:
    return retried(attempt, replace(retry, attempts=3, wait=0), *others)


@pytest.mark.parametrize(
    ("failures", "error", "message"),
    [
        (2, OSError("503 slow down"), None),
        (9, OSError("503 slow down"), "cannot be read after 3 tries: 503 slow down"),
        (9, PermissionError("Forbidden"), "cannot be read: Forbidden"),
        (9, RuntimeError("https://a:b@c?sig"), "cannot be read after 3 tries: https://c"),
    ],
)
def test_a_store_that_fails_is_tried_again_some_times(
    tmp_path: Path,
    memory: str,
    truth: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failures: int,
    error: Exception,
    message: str | None,
) -> None:
    real = ObjectStore._files
    flaky: list[Flaky] = []
    monkeypatch.setattr(object_store, "retried", impatiently)

    def store(self: ObjectStore) -> tuple[Any, str]:
        files, root = real(self)
        flaky[:] = flaky or [Flaky(files, failures, error)]
        return flaky[0], root

    monkeypatch.setattr(ObjectStore, "_files", store)
    capsys.readouterr()
    assert shard(tmp_path / "coco", memory, *PAIRS) == (2 if message else 0)
    if message:
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and message in err
        assert "a:b" not in err and "sig" not in err
    else:
        assert stored(memory) == truth


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://user:secret@nowhere/x?secret#secret", "s3://nowhere/x: "),
        ("gs://bucket/x", "gs://bucket/x: "),  # gcsfs is not installed
        ("ftp://user:secret@127.0.0.1:1/x", "ftp://127.0.0.1:1/x: cannot be read"),
    ],
)
def test_what_cannot_be_reached_is_one_line_without_secrets(
    s3: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    message: str,
) -> None:
    monkeypatch.setattr(object_store, "retried", impatiently)
    assert shard(source(tmp_path / "coco"), url, *PAIRS) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and message in err and "secret" not in err


def test_a_room_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run may take a new folder for one that a killed run has left."""
    lock, times = fcntl.flock, iter(range(9))

    def meanwhile(file: Any, operation: int) -> None:
        if operation == fcntl.LOCK_EX and next(times) < 2:
            remote_folder._sweep_scratch(tmp_path)
            assert not list(tmp_path.iterdir())
        lock(file, operation)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(fcntl, "flock", meanwhile)
    store = RemoteFolder("memory://x")
    with store.claim(None):
        remote_folder._sweep_scratch(tmp_path)
        with store.room() as folder:
            assert folder.is_dir()
        assert len(list(tmp_path.iterdir())) == 1
    assert next(times) == 3 and not list(tmp_path.iterdir())


def test_one_process_sees_memory(
    tmp_path: Path, memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shard(source(tmp_path / "coco"), memory, "--workers", 2) == 2
    assert "--workers: memory://bucket/shards is seen by one process" in capsys.readouterr().err
