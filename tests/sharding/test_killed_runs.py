"""Runs that are killed or stopped: nothing is lost, and the next one goes on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import wait_until
from shard_runs import (
    COMMAND,
    PAIRS,
    WORK,
    big_source,
    files_of,
    in_child,
    shard,
    source,
    started,
)

from autotimm.coco.layouts import find_splits
from autotimm.format.manifest_file import read_manifest
from autotimm.sharding import cli, job, run
from autotimm.sharding.destinations.local_folder import LocalFolder

pytestmark = pytest.mark.usefixtures("own_threads", "one_worker")


def kill_at(moment: int, after: bool) -> None:
    """Kills this process (-9) before or after its nth change of a folder."""
    changes = iter(range(1, moment + 1))

    def patched(real: Callable) -> Callable:
        def change(*args: object, **options: object) -> object:
            last = next(changes) == moment
            if last and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **options)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return change

    for name in ("replace", "unlink", "mkdir"):
        setattr(Path, name, patched(getattr(Path, name)))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "after",
    [pytest.param(False, marks=pytest.mark.slow), pytest.param(True, marks=pytest.mark.release)],
)
def test_killed_at_every_change_of_the_folder_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], after: bool, overwrite: bool
) -> None:
    """Kills right before each change; right after one is much like right before the next."""
    coco, out, flags = source(tmp_path / "coco", 3, 1), tmp_path / "out", [*PAIRS, "--workers", 1]
    assert shard(coco, tmp_path / "truth", *flags) == 0
    truth = files_of(tmp_path / "truth")
    old: dict[str, bytes] = {}
    if overwrite:
        flags.append("--overwrite")
        assert shard(coco, tmp_path / "old", "--samples-per-shard", 1, "--workers", 1) == 0
        old = files_of(tmp_path / "old")
        assert len(old) > len(truth)
    killed, moment = -9, 0
    while killed == -9:
        moment += 1
        shutil.rmtree(out, ignore_errors=True)
        if overwrite:
            shutil.copytree(tmp_path / "old", out)

        def stopped(moment: int = moment) -> None:
            kill_at(moment, after)
            cli.main([str(a) for a in (coco, out, *flags)])

        killed = in_child(stopped)
        there = files_of(out) if out.exists() else {}
        if (
            "manifest.json" in there
        ):  # then all the files that it names are there, all old or all new
            expected = old if there["manifest.json"] == old.get("manifest.json") else truth
            assert expected.items() <= there.items(), moment
        assert shard(coco, out, *flags) == 0, (moment, capsys.readouterr().err)
        assert files_of(out) == truth, moment
        assert not (out / WORK).exists()
    assert moment > 15


def test_what_is_finished_is_not_written_again(
    tmp_path: Path, undisturbed: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def stopped() -> None:
        kill_at(1 + 1 + 2 * 3 + 2, after=True)  # two folders, the job, two shards of 3, a tar ...
        cli.main([str(a) for a in (tmp_path / "coco", out, *PAIRS, "--workers", 1)])

    assert in_child(stopped) == -9
    finished = {path.name: path.stat().st_ino for path in (out / WORK).glob("*.tar")}
    assert len(list((out / WORK).glob("train-*.json"))) == 2
    capsys.readouterr()
    assert shard(tmp_path / "coco", out, *PAIRS, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["kept_shards"], told["written_shards"]) == ("written", 2, 3)
    for name in ("train-000000.tar", "train-000001.tar"):
        assert (out / name).stat().st_ino == finished[name]
    assert files_of(out) == undisturbed
    assert shard(tmp_path / "coco", out, *PAIRS, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["kept_shards"], told["written_shards"]) == ("complete", 5, 0)


def children(process: subprocess.Popen) -> list[int]:
    return [
        int(pid)
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]


def runs(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_workers_end_with_a_killed_parent_and_the_lock_goes(tmp_path: Path) -> None:
    coco, out = big_source(tmp_path / "coco"), tmp_path / "out"
    flags = ["--samples-per-shard", 5, "--workers", 3]
    with started(coco, out, *flags) as process:
        workers = children(process)
        assert len(workers) == 3
        process.kill()
    wait_until(lambda: not any(runs(pid) for pid in workers))
    assert shard(coco, out, *flags) == 0
    assert read_manifest(out).splits["train"].images == 400
    assert not list(out.glob(".*"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_a_killed_worker_is_one_line_and_2(tmp_path: Path) -> None:
    coco, out = big_source(tmp_path / "coco"), tmp_path / "out"
    with started(coco, out, "--samples-per-shard", 5, "--workers", 2) as process:
        os.kill(children(process)[0], signal.SIGKILL)
        stdout, stderr = process.communicate()
    assert process.returncode == 2 and not stdout and stderr.count("\n") == 1
    assert "a worker was killed (out of memory?): fewer --workers need less" in stderr
    assert "finished and kept: run the same command again to go on" in stderr
    assert not list(out.glob(f"{WORK}/.*.tmp")), "what was half written is gone"


@pytest.mark.parametrize(
    ("sent", "workers"),
    [
        (signal.SIGINT, 2),
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_and_sigterm_are_one_line(
    tmp_path: Path, sent: signal.Signals, workers: int
) -> None:
    code, word = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}[sent]
    coco, out = big_source(tmp_path / "coco"), tmp_path / "out"
    flags = ["--samples-per-shard", 5, "--workers", workers]
    with started(coco, out, *flags) as process:
        os.killpg(process.pid, sent)  # like a terminal or SLURM, which signal the workers too
        stdout, stderr = process.communicate()
    assert process.returncode == code and not stdout and stderr.count("\n") == 1, stderr
    assert stderr.startswith(f"error: {word}; ")
    assert "of 80 shards are finished and kept: run the same command again to go on" in stderr
    assert not list(out.glob(f"{WORK}/.*.tmp")) and not (out / "manifest.json").exists()
    kept = len(list(out.glob(f"{WORK}/train-*.json")))
    splits = [*find_splits(coco).values()]
    outcome = run.shard(splits, LocalFolder(out), job.Options(samples_per_shard=5))
    assert outcome.kept == kept and outcome.new == 80 - kept


@pytest.mark.release
def test_killed_again_and_again_at_random(tmp_path: Path) -> None:
    rng = random.Random(7)
    coco, out = big_source(tmp_path / "coco", 600), tmp_path / "out"
    flags = ["--samples-per-shard", 5]
    assert shard(coco, tmp_path / "truth", *flags, "--workers", 1) == 0
    truth = files_of(tmp_path / "truth")
    for _ in range(5):
        shutil.rmtree(out, ignore_errors=True)
        code, kills = 1, 0
        while code:
            workers = rng.choice([1, 2, 3])
            command = [*COMMAND, *map(str, (coco, out, *flags, "--workers", workers))]
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
                time.sleep(rng.uniform(0.3, 1.0))
                victims = [process.pid, *children(process)] if process.poll() is None else []
                if victims and kills < 12:
                    kills += 1
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(rng.choice(victims), signal.SIGKILL)
                code = process.wait()
        assert kills and files_of(out) == truth and not (out / WORK).exists()
