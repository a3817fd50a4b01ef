"""Runs of ``autotimm-shard`` that are interrupted, resumed and shared, against one whole run.

Processes are real, and so are the ways in which they end.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from coco_folder import annotation, image, picture, write
from servers import wait_until

from autotimm.coco.layouts import find_splits
from autotimm.format.manifest_file import read_manifest
from autotimm.sharding import cli, job, run
from autotimm.sharding.destinations import locks
from autotimm.sharding.destinations.local_folder import LocalFolder

COMMAND = [sys.executable, "-c", "from autotimm.sharding.cli import main; main()"]
WORK = ".autotimm-shard"
FORK = multiprocessing.get_context("fork")

pytestmark = pytest.mark.usefixtures("own_threads", "one_worker")


def source(root: Path, train: int = 7, val: int = 2) -> Path:
    """Two splits of different images, some with annotations, and one that is damaged."""
    for split, count in (("train", train), ("val", val)):
        images = [image(id=n, file_name=f"{n}.jpg", width=64 + n % 9) for n in range(count)]
        files = {f"{n}.jpg": picture(64 + n % 9) for n in range(count)}
        if split == "train":
            images.append(image(id=count, file_name="broken.jpg"))
            files["broken.jpg"] = b"broken"
        annotations = [annotation(id=n, image_id=n) for n in range(0, count, 2)]
        write(root, images, annotations, files=files, split=split)
    return root


def big_source(root: Path, count: int = 400) -> Path:
    """Images of a megabyte, all the same file: writing them takes a while."""
    images = [image(id=n, width=1600, height=1200) for n in range(count)]
    return write(root, images, [], files={"a.jpg": picture(1600, 1200, quality=90)})


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != WORK}


def shard(*arguments: object) -> int:
    """Runs the command in this process; returns its exit code."""
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(a) for a in arguments])
    return int(exit_.value.code or 0)


def in_child(action: Callable[[], object]) -> int:
    """Runs a function in a forked process; returns its exit code, -9 after a kill -9."""
    child = FORK.Process(target=action)
    child.start()
    child.join()
    return int(child.exitcode or 0)


@pytest.fixture
def undisturbed(tmp_path: Path) -> dict[str, bytes]:
    """The folder that one uninterrupted run writes, two samples a shard."""
    assert shard(source(tmp_path / "coco"), tmp_path / "truth", *PAIRS, "--workers", 1) == 0
    return files_of(tmp_path / "truth")


PAIRS = ("--samples-per-shard", 2)


# Workers.


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


# Killed.


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


@contextlib.contextmanager
def started(*arguments: object, shards: int = 1) -> Iterator[subprocess.Popen]:
    """Starts a real run in its own process group, and waits until it has finished some shards."""
    out = Path(str(arguments[1]))

    def under_way() -> bool:
        assert process.poll() is None, process.stderr and process.stderr.read()
        return len(list(out.glob(f"{WORK}/train-*.json"))) >= shards

    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            wait_until(under_way)
            yield process
        finally:
            process.kill()


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
    assert stderr.startswith(f"autotimm-shard: {word}; ")
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


# Obstacles.


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


# Changes between two runs.


def stop_after(shards: int, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the command, and interrupts it after this number of shards."""
    real, calls = run.write_shard, iter(range(shards + 1))

    def write_shard(*args: object) -> object:
        if next(calls) == shards:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(run, "write_shard", write_shard)
        assert shard(*arguments, "--workers", 1) == 130


CHANGES = [
    (("--samples-per-shard", 3), None, "--samples-per-shard was 2, now 3"),
    ((*PAIRS, "--limit", 5), None, "--limit was not given, now 5"),
    ((*PAIRS, "--shuffle", 0), None, "--shuffle was not given, now 0"),
    ((*PAIRS, "--max-shard-size", "1MB"), None, "--max-shard-size was 536870912, now 1000000"),
    ((*PAIRS, "--splits", "train"), None, "the splits were train, val, now train"),
    (PAIRS, "annotations/instances_val.json", "instances_val.json has changed since"),
    (PAIRS, "train/3.jpg", "images of split 'train' were added, removed or changed in size since"),
]


@pytest.mark.parametrize(("flags", "file", "message"), CHANGES)
def test_a_changed_source_or_option_is_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple,
    file: str | None,
    message: str,
) -> None:
    coco, out = source(tmp_path / "coco"), tmp_path / "out"
    stop_after(2, coco, out, *PAIRS, monkeypatch=monkeypatch)
    if file:
        with (coco / file).open("ab") as appended:
            appended.write(b"\n")
    before = {path.name for path in (out / WORK).iterdir()}
    capsys.readouterr()
    assert shard(coco, out, *flags) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err and "--overwrite" in err
    assert {path.name for path in (out / WORK).iterdir()} == before, "nothing is lost unasked"
    assert shard(coco, out, *flags, "--overwrite") == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "discarded" in err and message in err
    assert shard(coco, tmp_path / "fresh", *flags) == 0
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_a_changed_image_is_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    coco, out = source(tmp_path / "coco"), tmp_path / "out"
    stop_after(3, coco, out, *PAIRS, monkeypatch=monkeypatch)
    path = coco / "train" / "2.jpg"
    data = bytearray(path.read_bytes())
    data[-10] ^= 1  # another picture of the same size, in the second shard
    path.write_bytes(data)
    capsys.readouterr()
    assert shard(coco, out, *PAIRS, "--json") == 0
    told, err = capsys.readouterr()
    assert json.loads(told)["kept_shards"] == 2
    assert "written again: train-000001.tar (1 of 3 finished shards)" in err
    assert shard(coco, tmp_path / "fresh", *PAIRS) == 0
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_an_image_that_changes_while_its_shard_is_written_is_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    coco, out = source(tmp_path / "coco"), tmp_path / "out"
    path, real = coco / "train" / "0.jpg", run.write_shard

    def write_shard(folder: Path, plan: job.ShardPlan, *rest: object) -> object:
        written = real(folder, plan, *rest)  # type: ignore[arg-type]
        if plan.name == "train-000000.tar":
            os.utime(path, (0, 0))
        return written

    with monkeypatch.context() as patched:
        patched.setattr(run, "write_shard", write_shard)
        stop_after(2, coco, out, *PAIRS, monkeypatch=monkeypatch)
    capsys.readouterr()
    assert shard(coco, out, *PAIRS) == 0
    err = capsys.readouterr().err
    assert "written again: train-000000.tar (1 of 2 finished shards)" in err


@pytest.mark.parametrize("damage", ["cut", "gone", "entry", "job"])
def test_a_damaged_journal_or_shard_is_written_again(
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    out = tmp_path / "out"
    stop_after(3, tmp_path / "coco", out, *PAIRS, monkeypatch=monkeypatch)
    if damage == "cut":
        os.truncate(out / WORK / "train-000001.tar", 512)
    elif damage == "gone":
        (out / WORK / "train-000001.idx.npy").unlink()
    elif damage == "entry":
        (out / WORK / "train-000001.json").write_text('{"images": "many"}')
    else:
        (out / WORK / "job.json").write_text("{")
    overwrite = ["--overwrite"] * (damage == "job")
    assert shard(tmp_path / "coco", out, *PAIRS, *overwrite) == 0
    assert files_of(out) == undisturbed


def test_an_input_error_discards_the_unfinished_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    coco, out = source(tmp_path / "coco"), tmp_path / "out"
    stop_after(4, coco, out, *PAIRS, "--splits", "val,train", monkeypatch=monkeypatch)
    capsys.readouterr()
    assert shard(coco, out, *PAIRS, "--splits", "val,train", "--strict") == 2
    assert "--strict: split 'train': image cannot be opened" in capsys.readouterr().err
    assert not list(out.iterdir())


def test_a_complete_folder_that_lost_a_shard_is_not_complete(
    tmp_path: Path, undisturbed: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    truth = tmp_path / "truth"
    (truth / "train-000002.tar").unlink()
    capsys.readouterr()
    assert shard(tmp_path / "coco", truth, *PAIRS) == 2
    assert "train-000002.tar is missing or of another size; --over" in capsys.readouterr().err
    assert shard(tmp_path / "coco", truth, *PAIRS, "--overwrite") == 0
    assert files_of(truth) == undisturbed
    assert shard(tmp_path / "coco", truth, *PAIRS, "--strict") == 2  # the source has problems
    assert "--strict: split 'train'" in capsys.readouterr().err


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


# One at a time, and in parts.


def test_what_leads_out_of_the_folder_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source(tmp_path / "coco")
    (tmp_path / "out").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    (tmp_path / "out" / WORK).symlink_to(tmp_path / "mine")
    for options in ([], ["--overwrite"], ["--part", "1/2"]):
        assert shard(tmp_path / "coco", tmp_path / "out", *options) == 2
        assert f"{WORK}: is not the folder of an unfinished run" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter"]
    (tmp_path / "out" / WORK).unlink()
    (tmp_path / "out" / WORK).write_text("a file")
    assert shard(tmp_path / "coco", tmp_path / "out") == 2


def test_one_run_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0.2)
    coco, out = big_source(tmp_path / "coco"), tmp_path / "out"
    with started(coco, out, "--samples-per-shard", 5, "--workers", 1) as process:
        process.send_signal(signal.SIGSTOP)  # keeps the lock meanwhile
        for flags in ([], ["--overwrite"], ["--part", "1/2"]):
            assert shard(coco, out, "--samples-per-shard", 5, *flags) == 2
            err = capsys.readouterr().err
            assert err.count("\n") == 1 and "another autotimm-shard is writing there" in err


@pytest.mark.parametrize("order", ["123", "312", "13", ""])
def test_parts_in_any_order_make_one_run(
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
    order: str,
) -> None:
    out, flags = tmp_path / "out", PAIRS
    for which in order:
        capsys.readouterr()
        assert shard(tmp_path / "coco", out, *flags, "--part", f"{which}/3") == 0
        assert f"part {which} of 3 is done" in capsys.readouterr().out
        assert not (out / "manifest.json").exists()
    assert shard(tmp_path / "coco", out, *flags, "--json") == 0
    missing = {"123": 0, "312": 0, "13": 2, "": 5}[order]
    assert json.loads(capsys.readouterr().out)["written_shards"] == missing
    assert files_of(out) == undisturbed
    assert shard(tmp_path / "coco", out, *flags, "--part", "1/3") == 0  # there is nothing to do
    assert files_of(out) == undisturbed and not (out / WORK).exists()


def test_parts_at_once_make_one_run(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    coco, out = tmp_path / "coco", tmp_path / "out"

    def part(which: int) -> None:
        cli.main([str(a) for a in (coco, out, *PAIRS, "--workers", 1, "--part", f"{which}/4")])

    worker_pool = [FORK.Process(target=part, args=(which,)) for which in range(1, 5)]
    for process in worker_pool:
        process.start()
    for process in worker_pool:
        process.join()
    assert [process.exitcode for process in worker_pool] == [0] * 4
    assert len(list((out / WORK).glob("*-0*.json"))) == 5
    assert shard(coco, out, *PAIRS) == 0
    assert files_of(out) == undisturbed


def test_the_same_part_twice_or_another_number_of_parts_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0.2)
    coco, out = big_source(tmp_path / "coco"), tmp_path / "out"
    flags = ["--samples-per-shard", 5, "--workers", 1]
    with started(coco, out, *flags, "--part", "1/2") as process:
        process.send_signal(signal.SIGSTOP)
        for changed, message in (
            ([*flags, "--part", "1/2"], "another process is writing part 1/2"),
            ([*flags, "--part", "1/3"], "is being written in 2 parts, not in 3"),
            (flags, "another autotimm-shard is writing there"),
            (["--limit", 9, "--part", "2/2"], "holds an unfinished run that cannot go on"),
            (["--limit", 9, "--part", "2/2", "--overwrite"], "other parts are being written"),
        ):
            assert shard(coco, out, *changed) == 2
            err = capsys.readouterr().err
            assert err.count("\n") == 1 and message in err, err
        assert shard(coco, out, *flags, "--part", "2/2", "--limit", 400) == 2


# The plan.


def test_a_shuffle_is_seeded_and_stays_as_it_is(tmp_path: Path) -> None:
    assert job.choose(6, "train", None, None) == [0, 1, 2, 3, 4, 5]
    assert job.choose(6, "train", 4, None) == [0, 1, 2, 3]
    for seed in (0, 1):
        order = job.choose(1000, "train", None, seed)
        assert sorted(order) == list(range(1000)) and order != sorted(order)
        assert order == job.choose(1000, "train", None, seed)
        assert order[:30] == job.choose(1000, "train", 30, seed)
        assert order != job.choose(1000, "val", None, seed)
    assert job.choose(8, "train", None, 3) == SHUFFLED  # with every version of NumPy
    coco = source(tmp_path / "coco")
    assert shard(coco, tmp_path / "a", *PAIRS, "--shuffle", 3) == 0
    assert shard(coco, tmp_path / "b", *PAIRS, "--shuffle", 3, "--workers", 3) == 0
    assert shard(coco, tmp_path / "c", *PAIRS, "--shuffle", 4) == 0
    a, b, c = (files_of(tmp_path / name) for name in "abc")
    assert a == b
    assert any(a[name] != c[name] for name in a if name.endswith(".tar"))


def test_a_shuffle_renames_no_sample(tmp_path: Path) -> None:
    """Of files whose names give the same key, the first in the source gets it, in any order."""
    names = {3: "a.b.jpg", 7: "a_b.jpg", 5: "a b.jpg"}
    images = [image(id=n, file_name=name) for n, name in names.items()]
    files = {one["file_name"]: picture() for one in images}
    coco = write(tmp_path / "coco", images, [], files=files)
    orders = []
    for seed in range(6):
        (plan,) = job.read_job([*find_splits(coco).values()], job.Options(shuffle=seed)).plans
        orders.append([position for position, _ in plan[1].samples])
        assert dict(plan[1].samples) == {0: "a_b", 1: "a_b-7", 2: "a_b-5"}
    assert len({*map(tuple, orders)}) > 3


SHUFFLED = [6, 5, 1, 2, 0, 4, 7, 3]


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
