"""Ranks save and end when torchrun dies; two processes that had one number are distinguished."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import forked
import pytest
from ranks import TORCHRUN

from autotimm.distributed import parent, signals
from autotimm.training.run_record import read_record

RUN = """
import os, sys, time
import torch
from line import Line, loader, quiet

class Slow(Line):
    def training_step(self, batch, batch_idx):
        time.sleep(0.05)
        if self.trainer.global_step == 2:
            open(f"{sys.argv[1]}/pid-{self.global_rank}", "w").write(str(os.getpid()))
            print("trains", flush=True)
        return super().training_step(batch, batch_idx)

quiet(sys.argv[1], max_epochs=-1, max_steps=100_000, log_every_n_steps=1).fit(Slow(), loader(1000))
"""


def test_a_process_is_told_from_another_of_its_number() -> None:
    me = parent.identity()
    assert me["pid"] == os.getpid() and not parent.is_gone(me)
    assert parent.is_gone(me | {"ticks": "1"})
    assert parent.is_gone(me | {"boot": "another start of the machine"})
    assert not parent.is_gone(me | {"host": "elsewhere", "ticks": "1"})
    assert not parent.is_gone(None)


def test_the_death_of_torchrun_counts_as_sigterm(tmp_path: Path) -> None:
    def rank() -> None:
        os.environ["TORCHELASTIC_RUN_ID"] = "x"
        with signals.caught():
            (tmp_path / "ready").touch()
            while not signals.received():
                time.sleep(0.01)
            (tmp_path / f"got-{signals.received()}").touch()
            os._exit(0)

    def torchrun() -> None:
        fork.Process(target=rank).start()
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    fork = multiprocessing.get_context("fork")
    agent = fork.Process(target=torchrun)
    agent.start()
    agent.join()
    while not list(tmp_path.glob("got-*")):
        time.sleep(0.01)
    assert (tmp_path / f"got-{int(signal.SIGTERM)}").exists()


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.caught(ends=True):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to_rank"),
    [
        (signal.SIGUSR2, False),  # torchrun dies of it
        (signal.SIGHUP, False),  # torchrun hands it on
        pytest.param(signal.SIGKILL, False, marks=pytest.mark.release),
        pytest.param(signal.SIGHUP, True, marks=pytest.mark.release),
    ],
)
def test_whatever_ends_torchrun_the_ranks_save(number: int, to_rank: bool, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    words = [*TORCHRUN, "--nproc-per-node=2", str(script), str(tmp_path)]
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as run:
        pids = [tmp_path / f"pid-{rank}" for rank in range(2)]
        while not all(path.exists() and path.read_text() for path in pids):
            assert run.poll() is None
            time.sleep(0.05)
        ranks = [int(path.read_text()) for path in pids]
        os.kill(ranks[1] if to_rank else run.pid, number)
        said = run.stderr.read() if run.stderr else ""  # until the ranks have ended, too
    assert "stopped by SIG" in said, said[-3000:]
    record = read_record(tmp_path / "version_0")
    assert record["status"] == "preempted"
    saved = (tmp_path / "version_0/checkpoints/last.ckpt").resolve()
    assert saved.name == f"step_{record['step']}.ckpt" and record["step"] >= 2


@pytest.mark.slow
def test_a_killed_run_is_not_said_to_be_running(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    run = forked.start(script, tmp_path, env=environment)
    assert any("trains" in line for line in run.lines())
    assert read_record(tmp_path / "version_0")["status"] == "running"
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    killed = read_record(tmp_path / "version_0")
    assert killed["status"] == "killed" and "without a word" in killed["error"]
    done = forked.run("-c", RUN.replace("100_000", "3"), tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "version_0/run.json").read_text())["status"] == "killed"
    assert read_record(tmp_path / "version_1")["status"] == "finished"
