"""SLURM's commands in tests, against a real cluster of two nodes on this machine."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLUSTER = Path(
    os.environ.get(
        "AUTOTIMM_SLURM_LOCALHOST", Path(__file__).parents[2] / "shared/tools/slurm-localhost"
    )
)
GOING = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}

Environment = dict[str, str]


def command(*arguments: object, env: Environment) -> str:
    """Runs a command in the checkout; returns what it printed."""
    done = subprocess.run(
        [str(a) for a in arguments], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    """Waits for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come true"
        time.sleep(0.2)


def wait(env: Environment, *jobs: str) -> None:
    """Until no task of these jobs, of any if none is given, is waiting or running."""
    of = ("-t", "all", *(("-j", ",".join(jobs)) if jobs else ()))
    until(
        lambda: not GOING & {*command("squeue", "-h", "-r", "-o", "%T", *of, env=env).split()}, 1000
    )
