"""Large images are held one at a time, by threads, forks and spawned processes; small ones not."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autotimm.images import turns


def hold(path: str, pixels: int, log: str) -> None:
    if path:
        turns.join(path)
    with turns.in_turn(pixels):
        with Path(log).open("a") as file:
            file.write("+")
        time.sleep(0.2)
        with Path(log).open("a") as file:
            file.write("-")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_hold_large_images_one_at_a_time(method: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context(method)
    log, path = str(tmp_path / "log"), turns.share() if method == "spawn" else ""
    Path(log).touch()
    many = [context.Process(target=hold, args=(path, turns.LARGE + 1, log)) for _ in range(3)]
    for one in many:
        one.start()
    for one in many:
        one.join()
    assert Path(log).read_text() == "+-" * 3


def test_small_images_are_held_at_once(tmp_path: Path) -> None:
    with turns.in_turn(turns.LARGE), turns.in_turn(turns.LARGE):
        pass


def test_a_process_that_dies_with_a_large_image_leaves_the_turn_to_others(tmp_path: Path) -> None:
    def die() -> None:
        with turns.in_turn(turns.LARGE + 1):
            os.kill(os.getpid(), signal.SIGKILL)

    one = multiprocessing.get_context("fork").Process(target=die)
    one.start()
    one.join()
    with turns.in_turn(turns.LARGE + 1):
        pass


def test_no_file_is_left_open_at_the_end() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", "import autotimm.images.turns"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ResourceWarning" not in done.stderr
