"""Worker processes: every task once, errors and deaths reported, no process left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from autotimm.images import turns
from autotimm.sharding.processes import Progress, worker_pool
from autotimm.structures import InputError

pytestmark = pytest.mark.usefixtures("own_threads")


def square(task: int, progress: Progress) -> tuple[int, int]:
    """A task of several steps; returns the id of its process."""
    for _ in range(task):
        progress(1)
    return task * task, os.getpid()


def file_of_turns(task: int, progress: Progress) -> tuple[int, int]:
    """By whose lock a process waits for others that decode large images."""
    assert turns._file is not None
    found = os.fstat(turns._file)
    return found.st_dev, found.st_ino


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_task_is_done_once(workers: int) -> None:
    steps: list[int] = []
    with worker_pool(square, workers) as deal:
        results = dict(deal(range(20), steps.append))
        again = dict(deal([7], steps.append))
    assert {task: value for task, (value, _) in results.items()} == {n: n * n for n in range(20)}
    assert again[7][0] == 49 and sum(steps) == sum(range(20)) + 7
    pids = {pid for _, pid in results.values()}
    assert (pids == {os.getpid()}) == (workers == 1) and len(pids) <= workers
    assert not multiprocessing.active_children()


def test_no_task_is_no_work() -> None:
    with worker_pool(square, 3) as deal:
        assert not list(deal([], lambda _: None))


def test_workers_are_spawned_beside_a_thread() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        with worker_pool(file_of_turns, 2) as deal:
            children = multiprocessing.active_children()
            assert {type(child).__name__ for child in children} == {"SpawnProcess"}
            locked = dict(deal(range(4), lambda _: None))
        assert locked == dict.fromkeys(range(4), file_of_turns(0, lambda _: None))
    finally:
        end.set()


class UnpicklableError(OSError):
    """Cannot be unpickled, because it takes two arguments and keeps one."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def raising(error: BaseException) -> Callable[[int, Progress], int]:
    def work(task: int, progress: Progress) -> int:
        if task == 3:
            raise error
        return task

    return work


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (InputError("file.json: broken"), InputError, r"^file.json: broken$"),
        (OSError(28, "No space left on device", "out"), OSError, "No space left on device: 'out'"),
        (ConnectionResetError("the store hung up"), ConnectionResetError, "^the store hung up$"),
        (UnpicklableError(1, 2), RuntimeError, "UnpicklableError: 1 and 2"),
        (KeyError("a bug"), RuntimeError, "in work\n.*raise error\nKeyError: 'a bug'"),
    ],
)
def test_an_error_comes_here(error: Exception, expected: type[Exception], message: str) -> None:
    with pytest.raises(expected, match=f"(?s){message}"), worker_pool(raising(error), 2) as deal:
        list(deal(range(9), lambda _: None))
    assert not multiprocessing.active_children()


def dying(task: int, progress: Progress) -> int:
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def leaving(task: int, progress: Progress) -> int:
    if task == 3:
        os._exit(7)
    return task


@pytest.mark.parametrize(
    ("work", "message"), [(dying, "was killed .out of memory"), (leaving, "ended by exit 7")]
)
def test_a_worker_that_dies_is_an_error(work: Callable[[int, Progress], int], message: str) -> None:
    with pytest.raises(ChildProcessError, match=message), worker_pool(work, 2) as deal:
        list(deal(range(9), lambda _: None))
    assert not multiprocessing.active_children()


def test_what_ends_the_block_ends_the_workers() -> None:
    def interrupted(task: int, progress: Progress) -> None:
        if task == 1:  # reports, and never ends
            for _ in range(10**6):
                progress(1)
                time.sleep(0.01)
        time.sleep(10**6)

    def stop(_: int) -> None:
        assert len(multiprocessing.active_children()) == 3
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), worker_pool(interrupted, 3) as deal:
        list(deal(range(3), stop))
    assert not multiprocessing.active_children()


def test_signals_to_all_are_the_parents() -> None:
    def work(task: int, progress: Progress) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return task

    with worker_pool(work, 2) as deal:
        assert len(list(deal(range(4), lambda _: None))) == 4
