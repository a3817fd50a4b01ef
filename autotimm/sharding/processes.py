"""A pool of worker processes, each of which takes one task after another.

Invariants: workers are forked if that is possible, so that they share loaded data, and before this
process starts a thread. They end when the block ends that started them, and at once when this
process dies, however that happens. A worker that dies causes an error, never a hang.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from autotimm.images.turns import join, share
from autotimm.redaction import guard_process
from autotimm.structures import InputError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

_Result = TypeVar("_Result")
Progress = Callable[[int], object]
Work = Callable[[int, Progress], _Result]
"""Does the task of a number, and calls the progress function with the amount just done."""
RunTasks = Callable[[Iterable[int], Progress], Iterator[tuple[int, _Result]]]
"""Has the workers do tasks; yields (task, result) in the order of completion."""

_ENDING = 0.3  # seconds to wait for a thread to end
_REPORT = 0.1  # seconds between a worker's progress reports


@contextlib.contextmanager
def worker_pool(work: Work[_Result], workers: int) -> Iterator[RunTasks[_Result]]:
    """Starts worker processes, and yields the function that has them do tasks.

    That function re-raises exceptions of ``work``, and raises a ChildProcessError if a worker dies.

    Args:
        work: does a task.
        workers: the number of processes; 1 does the tasks in this process.
    """
    if workers == 1:
        yield lambda tasks, progress: ((task, work(task, progress)) for task in tasks)
        return
    import gc
    import multiprocessing

    # A fork of a process with threads (fsspec has one) may inherit a lock that is never released.
    # A thread that is about to end (rich's) gets a moment to do so.
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(_ENDING)
    forks = "fork" in multiprocessing.get_all_start_methods() and threading.active_count() == 1
    context: Any = multiprocessing.get_context("fork" if forks else "spawn")
    members: list[tuple[BaseProcess, Connection]] = []
    gc.freeze()  # a garbage collection in a worker would write to, and so copy, shared memory
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            arguments = (work, theirs, "" if forks else share())
            process = context.Process(target=_serve, args=arguments, daemon=True)
            # A Ctrl-C that reaches a worker before it ignores SIGINT would print a traceback.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            try:
                process.start()
                members.append((process, ours))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()  # so that the pipe ends when the worker does
        yield lambda tasks, progress: _run_tasks(members, tasks, progress)
    finally:
        gc.unfreeze()
        for process, _ in members:
            process.kill()  # safe, because unfinished files have temporary names
        for process, pipe in members:
            process.join()
            pipe.close()


def _run_tasks(
    members: list[tuple[BaseProcess, Connection]], tasks: Iterable[int], progress: Progress
) -> Iterator[tuple[int, Any]]:
    from multiprocessing.connection import Connection, wait

    waiting = deque(tasks)
    busy: dict[Any, tuple[BaseProcess, int]] = {}

    def assign(process: BaseProcess, pipe: Connection) -> None:
        if waiting:
            busy[pipe] = process, waiting.popleft()
            with _alive(process):
                pipe.send(busy[pipe][1])

    for process, pipe in members:
        assign(process, pipe)
    while busy:
        for ready in wait(list(busy)):
            assert isinstance(ready, Connection)
            process, task = busy[ready]
            with _alive(process):
                done, value = ready.recv()
            if isinstance(value, BaseException):
                raise value
            if done:
                del busy[ready]
                assign(process, ready)
                yield task, value
            else:
                progress(value)


@contextlib.contextmanager
def _alive(process: BaseProcess) -> Iterator[None]:
    """Turns the end of a worker's pipe into a ChildProcessError that says how the worker ended."""
    try:
        yield
    except (EOFError, ConnectionError):
        process.join()
        raise ChildProcessError(_ended(process.exitcode or 0)) from None


def _ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return "a worker was killed (out of memory?): fewer --workers need less"
    return f"a worker ended by {signal.Signals(-code).name if code < 0 else f'exit {code}'}"


def _serve(work: Work[Any], pipe: Connection, turns: str) -> None:
    """Runs in a worker: does tasks from the pipe until it ends.

    Args:
        work: does a task.
        pipe: from which the tasks come.
        turns: with which a spawned worker joins those that take turns at large images.
    """
    guard_process()  # a worker that was spawned does not inherit it
    if turns:
        join(turns)
    # Terminals and SLURM signal all processes; the parent handles it, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    done, reported = 0, time.monotonic()

    def progress(count: int) -> None:
        nonlocal done, reported
        done += count
        if time.monotonic() - reported > _REPORT:
            pipe.send((False, done))
            done, reported = 0, time.monotonic()

    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            result = work(task, progress)
        except Exception as error:
            pipe.send((True, _portable(error)))
            return
        pipe.send((False, done))
        done = 0
        pipe.send((True, result))


def _portable(error: Exception) -> Exception:
    """An exception that can be pickled; an unexpected one becomes a RuntimeError with traceback."""
    if isinstance(error, InputError | OSError):
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(error))  # noqa: S301 (our own)
            return error
    return RuntimeError("".join(traceback.format_exception(error)))


def _end_with_parent() -> None:
    """Waits until the parent has ended, also by kill -9, and then ends this process."""
    from multiprocessing import connection, parent_process

    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
