"""Kills, stops and lost processes, for ``faults.py``."""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_runs import Life, final, last_step, room, same, start, told
from lightning.pytorch import Callback

CHANGES = ("replace", "rename", "unlink", "symlink", "fsync", "mkdir", "rmdir")
"""The functions of ``os`` that change what is on the disk, around which a run is killed."""


def truth_of(folder: Path, ranks: int) -> tuple[dict[str, Any], set[tuple[int, int, str]]]:
    """The end of an undisturbed run, and what each of its steps has told."""
    with room(folder, f"truth-{ranks}") as root:
        life = start(root, ranks)
        assert life.wait() == 0, life.said()
        return final(root), set(told(root))


def kill_at(number: int, all_at_once: bool, folder: Path) -> None:
    """Has the first rank killed at the ``number``-th change of a file in ``checkpoints`` from now.

    It is killed before or after the change, in turn, alone or with its launcher and all ranks.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    seen = 0

    def around(change: Callable[..., Any], *given: Any, **more: Any) -> Any:
        nonlocal seen
        here = isinstance(given[0], int) or "/checkpoints" in str(given[0])
        seen += here
        hit = here and seen == number // 2
        if hit and number % 2 == 0:
            _die(all_at_once)
        result = change(*given, **more)
        if hit:
            _die(all_at_once)
        return result

    for name in CHANGES:
        setattr(os, name, functools.partial(around, getattr(os, name)))


def _die(all_at_once: bool) -> None:
    if all_at_once:
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def chain(folder: Path, kills: int, begin: Callable[[int, Path], Life]) -> tuple[int, list[str]]:
    """Starts runs with ``ckpt_path="last"`` and kills each; then lets the last one end.

    Args:
        folder: for the runs.
        kills: how many starts are killed before their end.
        begin: starts a life and kills it, or has it kill itself; given the number of the try.

    Returns:
        The number of kills, and what was found.
    """
    truth, steps = truth_of(folder, 2)
    found: list[str] = []
    killed = tries = 0
    while killed < kills and tries < 3 * kills + 3:
        with room(folder, "chain") as root:
            for _ in range(kills):
                before = last_step(root)
                if killed >= kills or before > 26:
                    break
                tries += 1
                life = begin(tries, root)
                killed += life.wait() != 0
                found += _compare(life, before)
            before = last_step(root)
            life = start(root, 2)
            if life.wait() != 0:
                found.append(f"does not go on: {life.line() or life.said()[-300:]}")
                continue
            found += _compare(life, before)
            if not same(final(root), truth):
                found.append("other weights at the end")
            if extra := set(told(root)) - steps:
                found.append(f"steps that the undisturbed run has not: {sorted(extra)[:2]}")
            if missing := steps - set(told(root)):
                found.append(f"steps that are missing: {sorted(missing)[:2]}")
    return killed, found


def _compare(life: Life, before: int) -> list[str]:
    """Whether a life went on behind the newest whole checkpoint, and no step was doubled in it."""
    found = []
    for rank in (0, 1):
        steps = life.steps(rank)
        if steps and steps != [*range(before + 1, before + 1 + len(steps))]:
            found.append(f"rank {rank} goes on from {steps[0]} after {before}: {steps[:4]}")
    return found


def _result(killed: int, found: list[str]) -> tuple[int, int, list[str]]:
    return killed, killed - min(len(found), killed), found


# ------------------------------------------------------------------------ the faults


def torchrun_killed_at_random(folder: Path, repeats: int) -> tuple[int, int, list[str]]:
    """torchrun, 2 ranks, `last`: SIGKILL of all at random moments"""
    chance = random.Random(1)

    def begin(number: int, root: Path) -> Life:
        life = start(root, 2)
        if number % 5:  # the others are killed in their start
            life.until(1)
        time.sleep(chance.random() * 1.2)
        life.kill()
        return life

    return _result(*chain(folder, repeats, begin))


def torchrun_killed_at_changes(folder: Path, repeats: int) -> tuple[int, int, list[str]]:
    """the same: SIGKILL before or after each rename, link, sync and removal of a save"""

    def begin(number: int, root: Path) -> Life:
        # Each save has 11 changes; the first ones of a start are those of clearing up.
        return start(root, 2, functools.partial(kill_at, 24 + number, True, root))

    return _result(*chain(folder, repeats, begin))


def launcher_killed(folder: Path, repeats: int) -> tuple[int, int, list[str]]:
    """SIGKILL of torchrun's agent alone: the ranks save and end"""
    truth, _ = truth_of(folder, 2)
    found: list[str] = []
    for number in range(repeats):
        with room(folder, "launcher") as root:
            life = start(root, 2, pause=0.2)
            life.until(2 + number % 3)
            life.process.kill()
            life.process.join()
            steps, quiet = -1, 0
            while quiet < 30 and len(told(root)) < 64:  # until no rank adds a step any more
                now = len(told(root))
                quiet = quiet + 1 if now == steps else 0
                steps = now
                time.sleep(0.1)
            taken = max(step for _, step, _ in told(root))
            if taken == 32:
                found.append("the ranks trained on without a launcher")
            if last_step(root) < taken:
                found.append(f"saved {last_step(root)} of {taken} steps")
            again = start(root, 2)
            if again.wait() != 0 or not same(final(root), truth):
                found.append(f"does not go on as before: {again.line()}")
    return _result(repeats, found)


def one_rank_killed(folder: Path, repeats: int) -> tuple[int, int, list[str]]:
    """SIGKILL of one rank: torchrun (one restart) goes on"""
    truth, _ = truth_of(folder, 2)
    found: list[str] = []
    for number in range(repeats):
        with room(folder, "rank") as root:
            once = functools.partial(_once, root / "once", 24 + 5 * number)
            life = start(root, 2, once, restarts=1)
            code = life.wait()
            if code != 0 or not (root / "once").exists():
                found.append(f"exit {code}: {life.said()[-300:]}")
            elif not same(final(root), truth):
                found.append("other weights at the end")
    return _result(repeats, found)


def _once(mark: Path, number: int) -> None:
    """Kills the first rank, at the first start only."""
    if os.environ["RANK"] == "0" and not mark.exists():
        mark.touch()
        kill_at(number, False, mark.parent)


class Sleeping(Callback):
    """Has the second rank stopped by SIGSTOP, and continued later by its parent."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 3:
            me = os.getpid()
            if os.fork() == 0:
                time.sleep(self.seconds)
                os.kill(me, signal.SIGCONT)
                os._exit(0)
            os.kill(me, signal.SIGSTOP)


def rank_stopped(folder: Path, repeats: int) -> tuple[int, int, list[str]]:
    """SIGSTOP of one rank for 8 s (goes on), and for longer than `timeout_minutes` (named)"""
    truth, _ = truth_of(folder, 2)
    found: list[str] = []
    with room(folder, "stopped") as root:
        life = start(root, 2, callbacks=[Sleeping(8)])
        if life.wait() != 0 or not same(final(root), truth):
            found.append(f"8 s: does not go on: {life.said()[-300:]}")
    with room(folder, "stopped") as root:
        life = start(root, 2, callbacks=[Sleeping(60)], timeout_minutes=0.2)
        code = life.wait()
        if code == 0 or "rank 1" not in life.said() or "does not answer" not in life.said():
            found.append(f"longer: exit {code}, not named: {life.said()[-300:]}")
        if start(root, 2).wait() != 0 or not same(final(root), truth):
            found.append("longer: does not go on")
    return 2, 2 - len(found), found


class KillWorker(Callback):
    """Kills a data worker at a step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_rank == 0 and trainer.global_step == 3:
            for child in multiprocessing.active_children()[:1]:
                os.kill(child.pid or 0, signal.SIGKILL)


def worker_killed(folder: Path, repeats: int) -> tuple[int, int, list[str]]:
    """SIGKILL of a data worker: told in one line, goes on from there"""
    found: list[str] = []
    for _ in range(repeats):
        with room(folder, "worker") as root:
            options: dict[str, Any] = {"num_workers": 1, "max_epochs": 3}
            life = start(root, 1, callbacks=[KillWorker()], **options)
            code = life.wait()
            if code == 0 and last_step(root) == 24:
                continue  # all batches had been read
            saved = last_step(root)
            if "worker" not in life.line():
                found.append(f"exit {code}: {life.said()[-300:]}")
            again = start(root, 1, **options)
            if again.wait() != 0 or again.steps()[:1] != [saved + 1]:
                found.append(f"does not go on: {again.said()[-300:]}")
    return _result(repeats, found)


def killed_with_another_world(folder: Path, repeats: int) -> tuple[int, int, list[str]]:
    """killed, then 1 rank instead of 2, and 2 instead of 1"""
    found: list[str] = []
    for first, second in ((2, 1), (1, 2)):
        with room(folder, "world") as root:
            life = start(root, first)
            life.until(6)
            life.kill()
            before, again = last_step(root), start(root, second)
            if again.wait() != 0 or again.steps()[:1] != [before + 1]:
                found.append(f"{first} to {second}: {again.steps()[:2]} {again.said()[-300:]}")
    return 2, 2 - len(found), found


HOUR = 3600.0
CLOCKS = ((0.0, HOUR), (-24 * HOUR, 0.0), (9000 * HOUR, -HOUR), (-HOUR, 9000 * HOUR), (0.0, 0.0))
"""How far the clocks of two nodes are ahead, at each of five starts."""


def _ahead(clocks: tuple[float, float]) -> None:
    real, ahead = time.time, clocks[int(os.environ["RANK"])]
    time.time = lambda: real() + ahead  # type: ignore[assignment]


def two_clocks(folder: Path, repeats: int) -> tuple[int, int, list[str]]:
    """two nodes whose clocks differ, otherwise at each of five starts; times of files at random"""
    truth, _ = truth_of(folder, 2)
    found: list[str] = []
    chance = random.Random(4)
    for _ in range(repeats):
        with room(folder, "clocks") as root:
            for number, clocks in enumerate(CLOCKS):
                before = last_step(root)
                life = start(root, 2, functools.partial(_ahead, clocks))
                if number < len(CLOCKS) - 1:
                    life.until(1 + chance.randrange(6))
                    life.kill()
                elif life.wait() != 0 or not same(final(root), truth):
                    found.append(f"another end: {life.said()[-300:]}")
                if (steps := life.steps()) and steps[0] != before + 1:
                    found.append(f"start {number + 1} goes on from {steps[0]} after {before}")
                for path in root.rglob("*"):
                    if path.is_file() and not path.is_symlink():
                        os.utime(path, (when := chance.uniform(1e9, 2e9), when))
    return _result(repeats, found)


FAULTS = [
    torchrun_killed_at_random,
    torchrun_killed_at_changes,
    launcher_killed,
    one_rank_killed,
    rank_stopped,
    worker_killed,
    killed_with_another_world,
    two_clocks,
]
