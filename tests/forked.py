"""Python programs as processes that begin with the trainer already imported.

Importing torch, Lightning and timm costs about nine CPU seconds, more than most programs of the
tests do. One server process imports them once, and every program is a fork of it: ``sys.argv``, the
environment, the folder and the output are those of a process of its own. Ranks get the variables
that torchrun gives. What a fork cannot show stays with real processes: torchrun itself (restarts,
kills, rendezvous), the time or the modules of a start, and the end of an interpreter.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NoReturn

from autotimm.streaming.workers import signals_blocked

PRELOADED = [
    "forked",
    "albumentations",
    "hotcoco",
    "timm",
    "torch.utils.tensorboard",
    "autotimm.cli.lightning_cli",
    "autotimm.inference.predict",
]
GRACE = 30  # seconds that torchrun gives the others between SIGTERM and SIGKILL

cpu_seconds = 0.0
"""Of all programs so far: they are no children of this process, which could not ask for them."""

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(PRELOADED)


def run(
    *words: object,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """What ``python WORDS`` would give, as ``subprocess.run`` with captured text does.

    Args:
        words: a script, ``-m`` and a module, or ``-c`` and code; then its arguments.
        env: the whole environment; this process's where it is missing.
        cwd: the folder it starts in.
        timeout: in seconds, after which it is killed and ``subprocess.TimeoutExpired`` raised.
    """
    return start(*words, env=env, cwd=cwd).wait(timeout)


def start(*words: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> Program:
    """As :func:`run`, without waiting for its end: for programs that are sent signals."""
    return Program(_alone, words, [{}], env, cwd)


def run_ranks(
    *words: object,
    ranks: int = 2,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """The same on each rank of one node, with the variables that torchrun sets.

    As under torchrun the exit code is 1 when a rank's is not 0, and the others are stopped then.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "GROUP_RANK": 0,
        "GROUP_WORLD_SIZE": 1,
        "ROLE_NAME": "default",
        "ROLE_WORLD_SIZE": ranks,
        "TORCHELASTIC_MAX_RESTARTS": 0,
        "TORCHELASTIC_RESTART_COUNT": 0,
        "TORCHELASTIC_RUN_ID": f"forked-{port}",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }
    of_rank = [common | {"RANK": i, "LOCAL_RANK": i, "ROLE_RANK": i} for i in range(ranks)]
    variables = [{key: str(value) for key, value in each.items()} for each in of_rank]
    return Program(_agent, words, variables, env, cwd).wait(timeout)


class Program:
    """A program that has been started, in a process group of its own.

    Attributes:
        pid: its process, and the process group that its own children belong to.
    """

    def __init__(
        self,
        target: Callable[..., None],
        given: tuple[object, ...],
        variables: list[dict[str, str]],
        env: dict[str, str] | None,
        cwd: Path | None,
    ) -> None:
        self._words = [str(word) for word in given]
        self._folder = tempfile.TemporaryDirectory()
        self._out, self._err = (Path(self._folder.name, name) for name in ("out", "err"))
        self._out.touch()
        self._err.touch()
        base = dict(os.environ if env is None else env)
        environments = [base | more for more in variables]
        self._process = _server.Process(
            target=target,
            args=(self._words, environments, str(cwd or Path.cwd()), self._out, self._err),
        )
        # The server may be the one that a test's data workers come from.
        with signals_blocked(_server):
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def lines(self) -> Iterator[str]:
        """The lines of its standard output as they come, until it ends."""
        with self._out.open(errors="replace") as file:
            line = ""
            while True:
                ended = not self._process.is_alive()  # before the last look
                line += file.readline()
                if line.endswith("\n"):
                    yield line
                    line = ""
                elif ended:
                    return
                else:
                    time.sleep(0.005)

    def wait(self, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Waits for its end; returns all that it has printed. See :func:`run` for the timeout."""
        self._process.join(timeout)
        expired = self._process.is_alive()
        if expired:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.join()
        said = [file.read_text(errors="replace") for file in (self._out, self._err)]
        _count(Path(self._folder.name, "used"))
        self._folder.cleanup()
        if expired:
            raise subprocess.TimeoutExpired(self._words, timeout, *said)
        return subprocess.CompletedProcess(self._words, self._process.exitcode or 0, *said)


def _count(used: Path) -> None:
    global cpu_seconds
    if used.exists():  # a killed program says nothing
        cpu_seconds += float(used.read_text())


def _leave(code: int, out: Path) -> NoReturn:
    """Ends this process, having noted what it and its children used."""
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    used = [resource.getrusage(kind) for kind in kinds]
    out.with_name("used").write_text(str(sum(one.ru_utime + one.ru_stime for one in used)))
    os._exit(code)


def _agent(words: list[str], environments: list[dict[str, str]], *place: Any) -> None:
    """Becomes the parent of the ranks, by which starts are told from each other."""
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_program, args=(words, env, *place)) for env in environments]
    for rank in ranks:
        rank.start()
    while living := [rank for rank in ranks if rank.is_alive()]:
        # Before each wait: a sentinel may be ready before the exit code is there.
        if not any(rank.exitcode for rank in ranks):
            wait([rank.sentinel for rank in living])
        else:
            for rank in living:
                rank.terminate()
            for rank in living:
                rank.join(GRACE)
                rank.kill()
    _leave(int(any(rank.exitcode for rank in ranks)), place[1])


def _alone(words: list[str], environments: list[dict[str, str]], *place: Any) -> None:
    """Becomes the only process of a program."""
    os.setpgid(0, 0)
    _program(words, environments[0], *place)


def _program(words: list[str], env: dict[str, str], cwd: str, out: Path, err: Path) -> None:
    """Becomes the program; never returns."""
    for number, file in ((1, out), (2, err)):
        stream = os.open(file, os.O_WRONLY | os.O_APPEND)
        os.dup2(stream, number)
        os.close(stream)
    # As in a new process: it is "forkserver" here, and data workers would get servers of their own.
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]
    gc.freeze()  # else each collection would look at all that is imported, and copy its pages
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    import torch

    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", "1")))
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    code: object = 0
    try:
        _execute(words)
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    _leave(int(code or 0) & 0xFF, out)


def _execute(words: list[str]) -> None:
    kind, *arguments = words
    sys.orig_argv[:] = [sys.executable, *words]
    if kind == "-m":
        sys.argv[:] = arguments
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv[:] = ["-c", *arguments[1:]]
        sys.path.insert(0, "")
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        exec(compile(arguments[0], "<string>", "exec"), vars(main))  # noqa: S102
    else:
        sys.argv[:] = words
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")
