"""A run: any number of processes writes the same shards, and errors leave what was there."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
from shard_runs import (
    PAIRS,
    WORK,
    big_source,
    files_of,
    in_child,
    shard,
    source,
)

from autotimm.coco.layouts import find_splits
from autotimm.sharding import cli, job, run
from autotimm.sharding.destinations.local_folder import LocalFolder

pytestmark = pytest.mark.usefixtures("own_threads", "one_worker")


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_the_number_of_workers_does_not_show(
    tmp_path: Path, undisturbed: dict[str, bytes], workers: int
) -> None:
    assert shard(tmp_path / "coco", tmp_path / "out", *PAIRS, "--workers", workers) == 0
    assert files_of(tmp_path / "out") == undisturbed
    assert len(undisturbed) == 2 * (4 + 1) + 1


def test_workers_are_spawned_where_a_thread_runs(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert shard(tmp_path / "coco", tmp_path / "out", *PAIRS, "--workers", 2) == 0
    assert files_of(tmp_path / "out") == undisturbed


def test_problems_are_counted_the_same_in_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source(tmp_path / "coco")
    told = []
    for workers in (1, 3):
        out = tmp_path / f"out{workers}"
        assert shard(tmp_path / "coco", out, *PAIRS, "--workers", workers, "--json") == 0
        told.append(json.loads(capsys.readouterr().out)["splits"])
    assert told[0] == told[1]
    assert told[0]["train"]["problems"] == {
        "image cannot be opened (image left out)": {"count": 1, "examples": ["broken.jpg"]}
    }


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a bug")])
def test_an_error_in_a_worker_is_raised_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    source(tmp_path / "coco")
    monkeypatch.setattr(run, "write_shard", fail)
    splits = [*find_splits(tmp_path / "coco").values()]
    with pytest.raises((OSError, RuntimeError), match=error.args[-1]):
        run.shard(splits, LocalFolder(tmp_path / "out"), job.Options(), workers=2)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("name", ["train-000001.tar", "val-000070.idx.npy"])
@pytest.mark.parametrize("moment", ["before", "meanwhile", "installing"])
def test_a_folder_in_a_files_place_leaves_the_old_set_whole(
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    name: str,
) -> None:
    coco, out = tmp_path / "coco", tmp_path / "out"
    flags = [*PAIRS, "--overwrite", "--workers", 1]
    assert shard(coco, out, "--samples-per-shard", 9) == 0
    old = files_of(out)

    def meanwhile(*args: object) -> object:
        (out / name).mkdir(exist_ok=True)
        return write_shard(*args)  # type: ignore[arg-type]

    if moment == "before":
        (out / name).mkdir()
    elif moment == "installing":  # an earlier run was killed before the move

        def killed() -> None:
            LocalFolder._move_up = lambda _: os.kill(os.getpid(), signal.SIGKILL)
            shard(coco, out, *flags)

        assert in_child(killed) == -9
        assert (out / WORK / "manifest.json").exists() and files_of(out) == old
        (out / name).mkdir()
    write_shard = run.write_shard
    capsys.readouterr()
    with monkeypatch.context() as patched:
        if moment == "meanwhile":
            patched.setattr(run, "write_shard", meanwhile)
        for _ in range(2):
            assert shard(coco, out, *flags) == 2
            err = capsys.readouterr().err
            assert err.count("\n") == 1 and f"{out / name}: is not a file, but has the name" in err
            there = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
            assert there == old
    (out / name).rmdir()
    assert shard(coco, out, *flags) == 0
    assert files_of(out) == undisturbed and not (out / WORK).exists()


def test_a_full_disk_is_said_and_the_run_goes_on(
    tmp_path: Path, undisturbed: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    coco, out = tmp_path / "coco", tmp_path / "out"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        cli.main([str(a) for a in (coco, out, *PAIRS, "--workers", 2)])

    assert in_child(limited) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "File too large" in err and "run the same command again" in err
    assert shard(coco, out, *PAIRS) == 0
    assert files_of(out) == undisturbed


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    coco = big_source(tmp_path / "coco", 300)  # 300 MB of images
    grown = tmp_path / "grown"

    def measured() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        options = {"samples_per_shard": 50, "workers": 2}
        cli.shard(coco, tmp_path / "out", **options)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        grown.write_text(str(own))

    assert in_child(measured) == 0
    assert int(grown.read_text()) < 40_000  # kilobytes
