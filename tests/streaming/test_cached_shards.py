"""Shards from a server without ranges: through the cache, whole or not at all, within its limit.

How that is found out ``test_range_faults.py`` tests; here it is known from the start.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import Server, serve
from sources import everything

from autotimm.data.synthetic import make_dataset
from autotimm.files.retry import Retry
from autotimm.sharding.cli import shard
from autotimm.streaming import cached_shards
from autotimm.streaming.by_ranges import ByRanges
from autotimm.streaming.cached_shards import CachedShardFiles
from autotimm.streaming.dataset import SampleStream
from autotimm.streaming.loader import StreamLoader
from autotimm.streaming.order import EpochOrder
from autotimm.streaming.store import ShardSource, open_source, split_names
from autotimm.structures import InputError, World

QUICK = Retry(attempts=3, wait=0.01)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ByRanges, "off", True)


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted") / "coco"
    make_dataset(folder, train=10, val=3, size=64)
    return folder


@pytest.fixture(scope="module")
def shard_folder(coco_folder: Path) -> Path:
    shard(coco_folder, coco_folder.parent / "shards", samples_per_shard=4)
    return coco_folder.parent / "shards"


@pytest.fixture
def copy(shard_folder: Path, tmp_path: Path) -> Path:
    """A copy of the shards for a test to damage."""
    return shutil.copytree(shard_folder, tmp_path / "copy")


@pytest.fixture
def server(copy: Path) -> Iterator[Server]:
    with serve(copy) as server:
        yield server


def prefetch(source: ShardSource, plan: list[int]) -> None:
    """Prefetches, and waits until it is done."""
    source.prefetch(plan)
    assert isinstance(source.files, CachedShardFiles) and source.files.thread is not None
    source.files.thread.join()


def test_image_sizes_and_categories_of_a_url_fetch_indices_only(
    server: Server, shard_folder: Path, tmp_path: Path
) -> None:
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    local = ShardSource(str(shard_folder), "train")
    assert np.array_equal(source.image_sizes(), local.image_sizes())
    for found, known in zip(source.image_categories(9), local.image_categories(9), strict=True):
        assert np.array_equal(found, known) and len(known) > 10
    assert not any(name.endswith(".tar") for name in server.requests)


def test_a_cached_tar_that_changed_is_fetched_again_where_there_is_no_index(
    server: Server, copy: Path, tmp_path: Path
) -> None:
    before = everything(ShardSource(str(copy), "train"))
    for index in copy.glob("*.npy"):
        index.unlink()
    everything(ShardSource(server.url, "train", tmp_path / "c", retry=QUICK))
    for file in (tmp_path / "c").glob("*.tar"):
        content = bytearray(file.read_bytes())
        content[600] ^= 1  # within the first image
        file.write_bytes(content)
    assert everything(ShardSource(server.url, "train", tmp_path / "c", retry=QUICK)) == before


def test_a_url_is_read_through_the_cache(
    server: Server, shard_folder: Path, tmp_path: Path
) -> None:
    local = ShardSource(str(shard_folder), "train")
    for _ in range(2):
        source = ShardSource(server.url + "?key=secret", "train", tmp_path / "cache", retry=QUICK)
        assert everything(source) == everything(local)
        assert source.fingerprint == local.fingerprint
    assert server.requests == Counter(
        {"manifest.json": 2}
        | {f"train-00000{k}{end}": 1 for k in range(3) for end in (".tar", ".idx.npy")}
    )
    for file in (tmp_path / "cache").glob("*.*"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.name.partition(".")[0]
    source.verify()
    assert source.where(1) == f"{server.url}/train-000001.tar"  # without the secret
    with pytest.raises(InputError) as error:
        ShardSource(server.url + "?key=secret", "test", retry=QUICK)
    assert str(error.value) == f"{server.url}: no split 'test', only train, val"


@pytest.mark.parametrize("suffix", [".tar", ".npy"])
def test_a_file_that_changes_in_the_cache_is_fetched_again(
    suffix: str, server: Server, shard_folder: Path, tmp_path: Path
) -> None:
    before = everything(ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK))
    for file in (tmp_path / "cache").glob(f"*{suffix}"):
        content = bytearray(file.read_bytes())
        content[600 if suffix == ".tar" else -1] ^= 1  # in a tar: within the first image
        file.write_bytes(content)
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    assert everything(source) == before
    assert set(server.requests.values()) == {1, 2}
    assert all(server.requests[name] == 2 for name in server.requests if suffix in name)
    source.verify()


def test_without_remote_indices_they_are_made(server: Server, copy: Path, tmp_path: Path) -> None:
    before = everything(ShardSource(str(copy), "train"))
    for index in copy.glob("*.npy"):
        index.unlink()
    assert everything(ShardSource(server.url, "train", tmp_path / "c", retry=QUICK)) == before


def test_a_server_that_fails_twice_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.faults = {"manifest.json": [503, 500], "train-000000.tar": [503, 429]}
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    source.read(0, 0)
    assert server.requests["train-000000.tar"] == 3

    server.faults = {"train-000001.tar": [503] * 9}
    with pytest.raises(InputError, match=r"train-000001\.tar: cannot be downloaded after 3 tries"):
        source.read(1, 0)
    server.faults = {"train-000001.tar": [403]}
    with pytest.raises(InputError, match=r"train-000001\.tar: cannot be downloaded: .*403"):
        source.read(1, 0)
    source.read(1, 0)


@pytest.mark.parametrize("fault", ["flipped", "cut", "longer", "gone"])
def test_a_wrong_download_never_enters_the_cache(
    fault: str, server: Server, copy: Path, tmp_path: Path
) -> None:
    tar = copy / "train-000000.tar"
    content = tar.read_bytes()
    source = ShardSource(
        server.url + "?key=secret", "train", tmp_path / "cache", retry=Retry(2, 0.01)
    )
    if fault == "flipped":
        tar.write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    elif fault == "cut":
        server.faults[tar.name] = ["cut"] * 2
    elif fault == "longer":
        tar.write_bytes(content + bytes(10 << 20))
    else:
        tar.unlink()
    with pytest.raises(InputError, match=r"train-000000\.tar: ") as error:
        source.read(0, 0)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
    files = [f for f in (tmp_path / "cache").iterdir() if f.is_file()]
    assert [f.suffix for f in files] == [".npy"]  # the index, which is intact


def test_no_manifest_is_no_source(server: Server, copy: Path) -> None:
    (copy / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"manifest\.json: the server has no such file"):
        open_source(server.url, "train")
    (copy / "manifest.json").write_bytes(b"{}")
    for attempt in (lambda: open_source(server.url, "train"), lambda: split_names(server.url)):
        with pytest.raises(InputError, match=f"^{server.url}/manifest.json: not a man.*: run"):
            attempt()


def _read_all(url: str, cache: Path, together: Any, found: Any) -> None:
    source = ShardSource(url, "train", cache, retry=QUICK)
    together.wait()
    content = everything(source)
    found.put(hashlib.sha256(b"".join(image for image, _ in content)).hexdigest())


def test_many_processes_fill_one_cache(server: Server, copy: Path, tmp_path: Path) -> None:
    server.delay = 0.3  # seconds, so that all processes ask during the first download
    context = multiprocessing.get_context("fork")
    together, found = context.Barrier(4), context.Queue()
    arguments = (server.url, tmp_path / "cache", together, found)
    readers = [context.Process(target=_read_all, args=arguments) for _ in range(4)]
    for reader in readers:
        reader.start()
    results = [found.get(timeout=60) for _ in readers]
    for reader in readers:
        reader.join()
    images = b"".join(image for image, _ in everything(ShardSource(str(copy), "train")))
    assert results == [hashlib.sha256(images).hexdigest()] * 4
    assert server.requests["train-000000.tar"] == 1  # one process downloads while the others wait


def test_prefetching_brings_shards_before_they_are_read(server: Server, tmp_path: Path) -> None:
    source = ShardSource(server.url, "train", tmp_path / "cache", retry=QUICK)
    prefetch(source, [2, 0])
    assert server.requests["train-000002.tar"] == server.requests["train-000000.tar"] == 1
    assert server.requests["train-000001.tar"] == 0
    source.read(2, 0)
    assert server.requests["train-000002.tar"] == 1


def test_a_cache_that_cannot_be_written_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    source = ShardSource(server.url, "train", tmp_path / "file", retry=QUICK)
    with pytest.raises(InputError, match="cannot be used as a cache"):
        source.read(0, 0)


def test_a_cache_limit_holds_the_shards_that_are_read_at_a_time(
    server: Server,
    copy: Path,
    shard_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = [
        tar.stat().st_size + tar.with_suffix(".idx.npy").stat().st_size
        for tar in copy.glob("train-*.tar")
    ]
    needed = sum(sizes)
    with pytest.raises(InputError, match=rf"cache_limit is {needed - 1:,} bytes.* need {needed:,}"):
        open_source(server.url, "train", tmp_path / "c", cache_limit=needed - 1)
    source = ShardSource(server.url, "train", tmp_path / "c", retry=QUICK, cache_limit=needed)
    assert everything(source) == everything(ShardSource(str(shard_folder), "train"))
    # The limit has to hold the largest shards of a window.
    monkeypatch.setattr(cached_shards, "WINDOW", 2)
    largest = needed - min(sizes)
    with pytest.raises(InputError, match=f"need {largest:,}"):
        ShardSource(server.url, "train", tmp_path / "c", cache_limit=largest - 1)


def test_prefetching_keeps_to_the_limit(
    server: Server, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_shards, "WINDOW", 2)
    folder, tars = tmp_path / "c", sorted(copy.glob("train-*.tar"))
    sizes = [tar.stat().st_size for tar in tars]
    hashes = [hashlib.sha256(tar.read_bytes()).hexdigest() for tar in tars]
    limit = sizes[0] + sizes[1] + 2 * 4500
    source = ShardSource(server.url, "train", folder, retry=QUICK, cache_limit=limit)
    for plan, there in (([0, 1, 2], {0, 1}), ([2], {1, 2}), ([0, 2], {0, 2})):
        prefetch(source, plan)
        names = {path.name for path in folder.glob("*.tar")}
        assert names == {hashes[k] + ".tar" for k in there}, plan
        time.sleep(0.01)  # so that times of use differ
    assert len(everything(source)) == 10
    assert sum(path.stat().st_size for path in folder.glob("*.*")) <= limit


def _key(data: Any, record: Any, rng: np.random.Generator) -> tuple[int, int, float]:
    return record["image_id"], zlib.crc32(data), rng.random()


def _same(samples: list[Any], padding: list[bool]) -> list[Any]:
    return samples


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_through_a_small_cache_is_that_of_the_folder(
    workers: int, coco_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten shards, windows of two, room for little more than one window."""
    folder, cache = tmp_path / "shards", tmp_path / "cache"
    shard(coco_folder, folder, samples_per_shard=1)
    monkeypatch.setattr(cached_shards, "WINDOW", 2)
    defaults = EpochOrder.__init__.__defaults__
    monkeypatch.setattr(EpochOrder.__init__, "__defaults__", (2, *defaults[1:]))  # type: ignore[index]
    largest = sorted(tar.stat().st_size + 5000 for tar in folder.glob("train-*.tar"))[-3:]

    def epochs(source: Any) -> list[Any]:
        stream = SampleStream(
            source, _key, _same, world=World(), batch_size=2, seed=4, shuffle=True
        )
        loader = StreamLoader(
            stream, num_workers=workers, multiprocessing_context="fork" if workers else None
        )
        batches = [list(loader) for _ in range(3)]
        loader.close()
        return batches

    with serve(folder) as server:
        source = ShardSource(server.url, "train", cache, retry=QUICK, cache_limit=sum(largest))
        assert epochs(source) == epochs(ShardSource(str(folder), "train"))
        assert sum(server.requests[name] for name in server.requests if ".tar" in name) > 10
    sizes = []
    for path in cache.glob("*.*"):
        with contextlib.suppress(FileNotFoundError):  # a read ahead has just renamed or removed it
            sizes.append(path.stat().st_size)
    assert sum(sizes) <= sum(largest)
