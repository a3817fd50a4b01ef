"""A crew of worker processes that take one task after another.

Invariants: workers are started before this process starts a thread (forked where that is possible,
so that they share what is loaded already), end at once when this process is gone, however it went,
and are gone when the block that started them ends. A worker that dies is an error, never a wait.
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

from autotimm.structures import InputError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

_Result = TypeVar("_Result")
Progress = Callable[[int], object]
Work = Callable[[int, Progress], _Result]
"""Does the task of a number, and tells the progress function how much of it is done meanwhile."""
Deal = Callable[[Iterable[int], Progress], Iterator[tuple[int, _Result]]]
"""Gives tasks to the workers; yields (task, result) as they get done, in any order."""

_ENDING = 0.3  # seconds
_TELL = 0.1  # seconds between a worker's words on its progress


@contextlib.contextmanager
def crew(work: Work[_Result], workers: int) -> Iterator[Deal[_Result]]:
    """Starts worker processes, and yields the function that gives them tasks.

    Args:
        work: what they do; an exception of it is raised here.
        workers: how many; 1 works in this process.

    Raises:
        ChildProcessError: a worker died (from the function that is yielded).
    """
    if workers == 1:
        yield lambda tasks, progress: ((task, work(task, progress)) for task in tasks)
        return
    import gc
    import multiprocessing

    # A fork beside a thread (fsspec has one) may find that thread's locks taken for ever. One
    # that is about to end (rich's) is waited for.
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(_ENDING)
    forks = "fork" in multiprocessing.get_all_start_methods() and threading.active_count() == 1
    context: Any = multiprocessing.get_context("fork" if forks else "spawn")
    members: list[tuple[BaseProcess, Connection]] = []
    gc.freeze()  # a collection in a worker would write to, and so copy, all that is shared
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(work, theirs), daemon=True)
            # A Ctrl-C before the worker ignores it would print a traceback.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            try:
                process.start()
                members.append((process, ours))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()  # so that the end of the worker is the end of the pipe
        yield lambda tasks, progress: _deal(members, tasks, progress)
    finally:
        gc.unfreeze()
        for process, _ in members:
            process.kill()  # what it was at is not finished, and nothing half done has a name
        for process, pipe in members:
            process.join()
            pipe.close()


def _deal(
    members: list[tuple[BaseProcess, Connection]], tasks: Iterable[int], progress: Progress
) -> Iterator[tuple[int, Any]]:
    from multiprocessing.connection import Connection, wait

    waiting = deque(tasks)
    busy: dict[Any, tuple[BaseProcess, int]] = {}

    def give(process: BaseProcess, pipe: Connection) -> None:
        if waiting:
            busy[pipe] = process, waiting.popleft()
            with _alive(process):
                pipe.send(busy[pipe][1])

    for process, pipe in members:
        give(process, pipe)
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
                give(process, ready)
                yield task, value
            else:
                progress(value)


@contextlib.contextmanager
def _alive(process: BaseProcess) -> Iterator[None]:
    """Turns the end of a worker's pipe into an error that says how the worker ended."""
    try:
        yield
    except (EOFError, ConnectionError):
        process.join()
        raise ChildProcessError(_ended(process.exitcode or 0)) from None


def _ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return "a worker was killed (out of memory?): fewer --workers need less"
    return f"a worker ended by {signal.Signals(-code).name if code < 0 else f'exit {code}'}"


def _serve(work: Work[Any], pipe: Connection) -> None:
    """The life of a worker."""
    # Terminals and SLURM send these to all processes. The parent says what came, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    done, told = 0, time.monotonic()

    def progress(count: int) -> None:
        nonlocal done, told
        done += count
        if time.monotonic() - told > _TELL:
            pipe.send((False, done))
            done, told = 0, time.monotonic()

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
    """An exception that can be sent; one that cannot, or that nobody expects, as its traceback."""
    if isinstance(error, InputError | OSError):
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(error))  # noqa: S301 (our own)
            return error
    return RuntimeError("".join(traceback.format_exception(error)))


def _end_with_parent() -> None:
    """Waits for the end of the parent, also by kill -9, and ends with it."""
    from multiprocessing import connection, parent_process

    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
