"""slurm/train.sh: the commands that it starts, and runs on a real cluster that lose nodes."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import forked
import pytest
from slurm_cluster import ROOT, Environment, command, until, wait

from autotimm.data.synthetic import make_dataset
from autotimm.sharding.cli import shard

SCRIPT = ROOT / "slurm" / "train.sh"
JOB = {
    "SLURM_JOB_ID": "15007",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_ON_NODE": "16",
    "SLURM_SUBMIT_DIR": ".",
}

# ------------------------------------------------------------------ without SLURM


def outside(tmp_path: Path, *flags: str, srun: str = "exit 0", **variables: str) -> tuple[int, str]:
    """The exit code and output of the script, run with commands that record their arguments."""
    answers = {
        "srun": srun,
        "scontrol": "case $1-$2 in\nshow-hostnames) echo n1;;\nshow-node) echo NodeAddr=127.0.0.1 x"
        ";;\nshow-job) echo JobState=${STATE:-RUNNING};;\nesac",
        "python": "",
    }
    for name, answer in answers.items():
        text = f'#!/usr/bin/env bash\necho {name} "$@" >>"{tmp_path}/calls"\n{answer}\n'
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    env |= {"PATH": f"{tmp_path}:{env['PATH']}", "AUTOTIMM_PYTHON": str(tmp_path / "python")}
    done = subprocess.run(
        ["bash", SCRIPT, *flags],
        env=env | JOB | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def calls(tmp_path: Path, name: str) -> list[str]:
    lines = (tmp_path / "calls").read_text().splitlines()
    return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]


@pytest.mark.parametrize(
    ("variables", "tasks", "options"),
    [
        ({}, 1, "--cpus-per-task=16"),
        ({"SLURM_GPUS_ON_NODE": "8"}, 8, "--cpus-per-task=2"),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_ON_NODE": "1"}, 8, "--overcommit"),
    ],
    ids=["CPUs", "GPUs", "fewer CPUs than GPUs"],
)
def test_one_task_a_device_shares_out_the_cpus(
    tmp_path: Path, variables: dict[str, str], tasks: int, options: str
) -> None:
    code, output = outside(tmp_path, "--config", "a b.yaml", **variables)
    assert code == 0
    (line,) = calls(tmp_path, "srun")
    assert line.startswith(
        f"--nodes=2 --ntasks={2 * tasks} --ntasks-per-node={tasks} --kill-on-bad-exit=1 {options} "
    )
    assert line.endswith("/python launch/train.py fit --config a b.yaml")
    assert ("sbatch --cpus-per-gpu" in output) == (options == "--overcommit")
    assert "MASTER_ADDR=127.0.0.1\nMASTER_PORT=15007\n" in output


def test_the_subcommand_may_come_first(tmp_path: Path) -> None:
    assert outside(tmp_path, "test", "--ckpt_path", "last")[0] == 0
    assert calls(tmp_path, "srun")[0].endswith("launch/train.py test --ckpt_path last")


def test_a_port_that_is_taken_is_not_used(tmp_path: Path) -> None:
    with socket.socket() as taken:
        for port in range(29999, 15000, -1):
            with contextlib.suppress(OSError):
                taken.bind(("127.0.0.1", port))
                break
        taken.listen()
        _, output = outside(tmp_path, SLURM_JOB_ID=str(port))
    (line,) = (line for line in output.splitlines() if line.startswith("MASTER_PORT="))
    assert line != f"MASTER_PORT={port}"
    assert 15000 <= int(line.removeprefix("MASTER_PORT=")) < 30000


STOPPED = 'echo {} >"$AUTOTIMM_STOPPED"'


def test_a_run_that_was_stopped_is_requeued_and_nothing_else(tmp_path: Path) -> None:
    code, _ = outside(tmp_path, srun=STOPPED.format(3))
    assert code == 85
    assert calls(tmp_path, "scontrol")[-1] == "requeue 15007"
    assert not list(tmp_path.glob(".slurm*"))
    # Neither is a job that a user has cancelled or that SLURM requeues itself.
    for state in ("CANCELLED", "PENDING"):
        (tmp_path / "calls").unlink()
        assert outside(tmp_path, srun=STOPPED.format(3), STATE=state)[0] == 85
        assert "requeue 15007" not in calls(tmp_path, "scontrol")
    (tmp_path / "calls").unlink()
    code, output = outside(tmp_path, srun="exit 137")
    assert code == 137 and "failed with 137; scontrol requeue 15007 has it go on" in output
    assert "requeue 15007" not in calls(tmp_path, "scontrol")


def test_only_the_stopped_task_of_an_array_is_requeued(tmp_path: Path) -> None:
    # One of the tasks has the number of the array as its job id.
    array = {"SLURM_ARRAY_JOB_ID": "15007", "SLURM_ARRAY_TASK_ID": "4"}
    assert outside(tmp_path, srun=STOPPED.format(3), **array)[0] == 85
    assert calls(tmp_path, "scontrol")[-2:] == ["show job 15007_4", "requeue 15007_4"]
    _, output = outside(tmp_path, srun="exit 137", **array)
    assert "scontrol requeue 15007_4 has it go on" in output


def test_a_run_that_gets_nowhere_is_not_requeued_for_ever(tmp_path: Path) -> None:
    def stopped(start: int, steps: int, srun: str = STOPPED) -> tuple[int, str]:
        return outside(tmp_path, srun=srun.format(steps), SLURM_RESTART_COUNT=str(start - 1))

    # Neither the first start, nor one after another that took steps, or that failed.
    assert [stopped(*start)[0] for start in [(1, 0), (2, 3), (3, 0), (4, 1), (5, 0)]] == [85] * 5
    assert calls(tmp_path, "scontrol").count("requeue 15007") == 5
    assert stopped(6, 0, "exit 137")[0] == 137
    assert stopped(7, 0)[0] == 85
    code, output = stopped(8, 0)
    assert code == 2 and "error: stopped twice in a row before a step was done" in output
    assert calls(tmp_path, "scontrol").count("requeue 15007") == 6
    assert not list(tmp_path.glob(".slurm*"))
    # Somebody gave it more time, and requeued it.
    assert stopped(9, 0)[0] == 85
    # A cluster that was set up anew counts its jobs from one again.
    assert stopped(1, 0)[0] == 85


def test_one_line_says_what_is_wrong(tmp_path: Path) -> None:
    code, output = outside(tmp_path, AUTOTIMM_PYTHON="none/python")
    assert code == 2 and "none/python is missing: run make install" in output
    code, output = outside(tmp_path, SLURM_SUBMIT_DIR="")
    assert code != 0 and "submit this script with sbatch" in output


# ------------------------------------------------------------------- on a cluster


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted")
    make_dataset(folder / "coco", train=13, val=4, size=64, seed=1)
    shard(folder / "coco", folder / "shards")
    return folder / "shards"


def flags(shards: Path, root: Path, epochs: int) -> list[str]:
    return [
        *("--config", "launch/small_cpu.yaml", f"--data.data_dir={shards}"),
        *("--data.image_size=64", "--data.num_workers=1", "--model.init_args.backbone=test_resnet"),
        *("--model.init_args.fpn_channels=16", "--model.init_args.head_convs=1"),
        *("--model.init_args.mask_size=12", "--model.init_args.warmup_steps=1"),
        *("--trainer.log_every_n_steps=1", "--trainer.limit_val_batches=0"),
        *(f"--trainer.max_epochs={epochs}", f"--trainer.default_root_dir={root}"),
    ]


def submit(env: Environment, log: Path, *arguments: object) -> str:
    nodes = ("--nodes=2", f"--output={log}")
    return command("sbatch", "--parsable", *nodes, *arguments, env=env)


def state(env: Environment, job: str) -> str:
    return command("squeue", "-h", "-o", "%T", "-t", "all", "-j", job, env=env)


def has(log: Path, *texts: str) -> bool:
    return log.exists() and all(text in log.read_text(errors="replace") for text in texts)


def start_again(env: Environment, job: str) -> None:
    until(lambda: state(env, job) == "PENDING")
    # SLURM counts whole seconds: it takes a restart within the second of the end for the old start.
    time.sleep(2)
    command("scontrol", "update", f"JobId={job}", "StartTime=now", env=env)


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def processes(job: str) -> dict[str, int]:
    """The process of each task of a job, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            given = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
        except OSError:  # it has ended
            continue
        env = dict(entry.split("=", 1) for entry in given if "=" in entry)
        trains = b"launch/train.py" in words and env.get("SLURM_JOB_ID") == job
        if trains and b"slurmstepd" in (Path("/proc") / parent / "cmdline").read_bytes():
            found[env["SLURM_PROCID"]] = int(folder.name)
    return found


def undisturbed_losses(shards: Path, root: Path) -> list[float]:
    """Those of five epochs on two ranks."""
    alone = flags(shards, root, epochs=5)
    done = forked.run_ranks(ROOT / "launch" / "train.py", "fit", *alone, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    truth = losses(root / "version_0")
    assert len(truth) == 20
    return truth


@pytest.mark.slow
def test_a_job_that_is_signalled_goes_on_as_if_it_had_not_been(
    cluster: Environment, shards: Path, tmp_path: Path
) -> None:
    truth = undisturbed_losses(shards, tmp_path / "alone")
    one_thread = cluster | {"OMP_NUM_THREADS": "1"}
    log, runs = tmp_path / "log", tmp_path / "runs"
    job = submit(one_thread, log, SCRIPT, *flags(shards, runs, epochs=5))
    until(lambda: has(log, "epoch 2 of 5"))
    command("scancel", "--signal=USR2", job, env=cluster)
    start_again(cluster, job)
    wait(cluster, job)
    output = log.read_text()
    assert state(cluster, job) == "COMPLETED", output
    assert losses(runs / f"job_{job}") == truth
    assert sorted(path.name for path in runs.iterdir()) == [f"job_{job}", "last"]
    assert f"job {job}, start 1," in output and f"job {job}, start 2," in output
    assert "stopped by SIGUSR2 at step " in output
    assert f"started again (slurm-{job}.0): goes on from {runs}/job_{job}/checkpoints/" in output
    record = json.loads((runs / f"job_{job}" / "run.json").read_text())
    assert record["status"] == "finished" and record["starts"] == 2


@pytest.mark.release
def test_a_job_whose_step_is_killed_goes_on_from_its_last_checkpoint(
    cluster: Environment, shards: Path, tmp_path: Path
) -> None:
    truth = undisturbed_losses(shards, tmp_path / "alone")
    one_thread = cluster | {"OMP_NUM_THREADS": "1"}
    log, runs = tmp_path / "log", tmp_path / "runs"
    each_step = "--trainer.save_every_n_steps=1"
    job = submit(one_thread, log, SCRIPT, *flags(shards, runs, epochs=5), each_step)
    until(lambda: has(log, "epoch 2 of 5"))
    command("scancel", "--signal=KILL", f"{job}.0", env=cluster)
    until(lambda: state(cluster, job) == "FAILED", 60)
    assert has(log, f"failed with 137; scontrol requeue {job}"), log.read_text(errors="replace")
    before = len(losses(runs / f"job_{job}"))
    assert 4 < before < 20
    command("scontrol", "requeue", job, env=cluster)
    start_again(cluster, job)
    wait(cluster, job)
    assert state(cluster, job) == "COMPLETED", log.read_text(errors="replace")
    assert losses(runs / f"job_{job}") == truth
    record = json.loads((runs / f"job_{job}" / "run.json").read_text())
    assert record["status"] == "finished" and record["starts"] == 2


@pytest.mark.release
def test_jobs_that_lose_a_task_are_cancelled_or_run_out_of_time(
    cluster: Environment, shards: Path, tmp_path: Path
) -> None:
    late, lost = tmp_path / "late", tmp_path / "lost"
    limited = ("--time=5", "--signal=USR2@150", SCRIPT)
    out_of_time = submit(cluster, late, *limited, *flags(shards, tmp_path / "a", epochs=9999))
    until(lambda: has(late, "Seed set"))  # this cluster is too small to start two jobs at once
    job = submit(cluster, lost, SCRIPT, *flags(shards, tmp_path / "b", epochs=9999))

    until(lambda: has(lost, "epoch 1 of"))
    os.kill(processes(job)["1"], signal.SIGKILL)
    until(lambda: state(cluster, job) == "FAILED", 60)
    assert has(lost, "n2: task 1: Killed", "failed with 137; scontrol requeue"), lost.read_text(
        errors="replace"
    )
    command("scontrol", "requeue", job, env=cluster)
    start_again(cluster, job)
    until(lambda: has(lost, f"started again (slurm-{job}.0): goes on from {tmp_path}/b/job_{job}"))
    until(lambda: lost.read_text(errors="replace").count("epoch ") > 1)
    command("scancel", job, env=cluster)
    wait(cluster, job)
    until(lambda: not processes(job), 60)
    assert state(cluster, job) == "CANCELLED"

    until(lambda: has(late, "stopped by SIGUSR2 at step"))
    until(lambda: state(cluster, out_of_time) == "PENDING")
    command("scancel", out_of_time, env=cluster)
    record = json.loads((tmp_path / "a" / f"job_{out_of_time}" / "run.json").read_text())
    assert record["status"] == "preempted" and record["step"] > 0
