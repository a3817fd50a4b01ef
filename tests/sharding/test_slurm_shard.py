"""slurm/shard.sh: its arguments, and, if SLURM is installed, a real cluster of two nodes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from coco_folder import annotation, image, picture, write
from slurm_cluster import ROOT, Environment, command, wait

SCRIPT = ROOT / "slurm" / "shard.sh"
OPTIONS = ("--samples-per-shard", "20")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,500 + 300 small images: 90 shards."""
    root = tmp_path_factory.mktemp("source")
    for split, count in (("train", 1500), ("val", 300)):
        images = [image(id=n, file_name=f"{n}.jpg") for n in range(count)]
        annotations = [annotation(id=n, image_id=n) for n in range(count)]
        files = {f"{n}.jpg": picture() for n in range(count)}
        write(root, images, annotations, files=files, split=split)
    return root


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The folder that one process on one machine writes."""
    folder = tmp_path_factory.mktemp("alone") / "shards"
    code = "from autotimm.sharding.cli import main; main()"
    run = [sys.executable, "-c", code, source, folder, "--workers", "1", *OPTIONS]
    command(*run, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return content(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def states(env: Environment, job: str) -> dict[str, str]:
    """The state of each task of an array, by its number."""
    lines = command("squeue", "-h", "-r", "-o", "%K %T", "-t", "all", "-j", job, env=env)
    return dict(line.split() for line in lines.splitlines())


def submit(env: Environment, logs: Path, *arguments: object) -> tuple[str, str]:
    """Submits the script; returns the ids of the array job and of the joining job."""
    logs.mkdir(exist_ok=True)
    output = f"--output={logs}/%j.out"
    said = command("bash", SCRIPT, arguments[0], output, *arguments[1:], env=env).split()
    assert said[0] == "job" and said[5] == "job", said
    return said[1], said[6]


@pytest.mark.slow
def test_an_array_and_a_join_write_what_one_machine_writes(
    cluster: Environment, source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    jobs = submit(cluster, tmp_path / "logs", "--array=1-3", source, tmp_path / "out", *OPTIONS)
    wait(cluster, *jobs)
    assert set(states(cluster, jobs[0]).values()) == {"COMPLETED"}
    assert content(tmp_path / "out") == expected
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == []


def hindered(folder: Path, out: Path, killed: str, stopped: str) -> Path:
    """A Python that stops half-way through these parts until ``folder/free`` exists.

    The process of the part ``killed`` gets SIGKILL, that of ``stopped`` hangs.
    """
    python = folder / "python"
    python.write_text(
        f"""#!/usr/bin/env bash
        all=$*
        part=${{all##*--part }} part=${{part%% *}}
        if [ -e {folder}/free ] || [[ $part != {killed} && $part != {stopped} ]]; then
            exec {sys.executable} "$@"
        fi
        {sys.executable} "$@" &
        until [ -n "$(find {out} -name "*.tar" 2>/dev/null)" ]; do sleep 0.01; done
        kill -STOP $!
        touch {folder}/half-way
        [ $part == {stopped} ] || kill -KILL $!
        wait $!
        """
    )
    python.chmod(0o755)
    return python


@pytest.mark.release
def test_killed_and_cancelled_tasks_go_on_when_the_array_is_submitted_again(
    cluster: Environment, source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    env = cluster | {"AUTOTIMM_PYTHON": str(hindered(tmp_path, out, "2/3", "3/3"))}
    parts, join = submit(env, tmp_path / "logs", "--array=0-2", source, out, *OPTIONS)
    going = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}
    while sum(state in going for state in states(env, parts).values()) > 1:
        time.sleep(0.1)
    assert states(env, parts) == {"0": "COMPLETED", "1": "FAILED", "2": "RUNNING"}
    command("scancel", f"{parts}_2", env=env)
    wait(env, parts, join)
    assert states(env, parts)["2"] == "CANCELLED"
    assert not (out / "manifest.json").exists(), "the joining job must not have run"

    (tmp_path / "free").touch()
    wait(env, *submit(env, tmp_path / "logs", "--array=0-2", source, out, *OPTIONS))
    assert content(out) == expected


@pytest.mark.release
def test_a_requeued_task_goes_on(
    cluster: Environment, source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    env = cluster | {"AUTOTIMM_PYTHON": str(hindered(tmp_path, out, "none", "1/2"))}
    parts, join = submit(env, tmp_path / "logs", "--array=1-2", source, out, *OPTIONS)
    while not (tmp_path / "half-way").exists():
        time.sleep(0.1)
    (tmp_path / "free").touch()
    command("scontrol", "requeue", f"{parts}_1", env=env)
    while states(env, parts)["1"] != "PENDING":
        time.sleep(0.1)
    command("scontrol", "update", f"JobId={parts}_1", "StartTime=now", env=env)
    wait(env, parts, join)
    assert content(out) == expected


def outside(tmp_path: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Runs the script with these SLURM variables; returns its exit code and error message."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    done = subprocess.run(
        ["bash", SCRIPT, *arguments],
        env=env | {"AUTOTIMM_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)} | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def array(task: int, first: int, last: int, count: int) -> dict[str, str]:
    return {
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_MAX": str(last),
        "SLURM_ARRAY_TASK_COUNT": str(count),
    }


JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_SUBMIT_DIR": "."}


@pytest.mark.parametrize(
    ("first", "last", "count"),
    [(1, 8, 4), (0, 8, 8), (3, 3, 1), (2, 5, 4)],
    ids=["steps", "a gap", "one again", "not from the first"],
)
def test_arrays_that_say_no_share_are_refused(
    tmp_path: Path, first: int, last: int, count: int
) -> None:
    code, error = outside(tmp_path, "coco", "out", **JOB, **array(last, first, last, count))
    assert code == 2 and error.startswith("error: --array has to be 1-N or 0-N")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("first", [0, 1])
def test_what_the_tasks_run(tmp_path: Path, first: int) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nshift 2\necho "$@" >>said\n')
    python.chmod(0o755)
    for task in range(first, first + 3):
        variables = JOB | array(task, first, first + 2, 3) | {"AUTOTIMM_PYTHON": str(python)}
        assert outside(tmp_path, "a b", "out", "--strict", **variables) == (0, "")
    join = JOB | {"AUTOTIMM_PYTHON": str(python), "SLURM_CPUS_PER_TASK": "5"}
    assert outside(tmp_path, "a b", "out", **join) == (0, "")
    assert (tmp_path / "said").read_text().splitlines() == [
        *(f"--workers 1 --part {part}/3 a b out --strict" for part in (1, 2, 3)),
        "--workers 5 a b out",
    ]


def test_one_line_says_what_is_wrong(tmp_path: Path) -> None:
    code, error = outside(tmp_path, "coco", "out")
    assert code == 2 and error.startswith("error: usage: bash slurm/shard.sh --array=1-8 ")
    for wrong in ("--array=3", "--array=1-8:2"):
        code, error = outside(tmp_path, wrong, str(tmp_path), "out")
        assert code == 2 and "1-N or 0-N" in error
    code, error = outside(tmp_path, "--array=1-8", "--time=9", "none", "out")
    assert code == 2 and error.startswith("error: SRC: no such file or folder: none")
    code, error = outside(tmp_path, "--array=1-8", "--time", "60")
    assert code == 2 and error.startswith("error: SRC and DST of autotimm-shard are missing")
    code, error = outside(tmp_path, "coco", "out", **JOB | {"AUTOTIMM_PYTHON": "none/python"})
    assert code == 2 and "none/python is missing: run make install" in error
    code, error = outside(tmp_path, "none", "out", **JOB)
    assert code == 2 and error == "error: none: no such folder\n"


def test_a_join_that_cannot_be_submitted_takes_the_array_back(tmp_path: Path) -> None:
    for name, text in [
        ("sbatch", '[[ "$*" != *dependency* ]] && echo "5;here" || exit 1'),
        ("scancel", 'echo "$@" >>cancelled'),
    ]:
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    (tmp_path / "coco").mkdir()
    assert outside(tmp_path, "--array=1-8", "coco", "out", PATH=path)[0] == 2
    assert (tmp_path / "cancelled").read_text() == "5\n"
