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
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NoReturn

PRELOADED = [
    "forked",
    "albumentations",
    "hotcoco",
    "timm",
    "torch.utils.tensorboard",
    "autotimm.cli.train",
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
    return _run(_alone, words, [{}], env, cwd, timeout)


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
    return _run(_agent, words, variables, env, cwd, timeout)


def _run(
    target: Callable[..., None],
    given: tuple[object, ...],
    variables: list[dict[str, str]],
    env: dict[str, str] | None,
    cwd: Path | None,
    timeout: float,
) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in given]
    base = dict(os.environ if env is None else env)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        out.touch()
        err.touch()
        environments = [base | more for more in variables]
        process = _server.Process(
            target=target, args=(words, environments, str(cwd or Path.cwd()), out, err)
        )
        process.start()
        process.join(timeout)
        expired = process.is_alive()
        if expired:
            assert process.pid is not None
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        said = [file.read_text(errors="replace") for file in (out, err)]
        _count(Path(folder, "used"))
        if expired:
            raise subprocess.TimeoutExpired(words, timeout, *said)
        return subprocess.CompletedProcess(words, process.exitcode or 0, *said)


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
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_program, args=(words, env, *place)) for env in environments]
    for rank in ranks:
        rank.start()
    while living := [rank for rank in ranks if rank.is_alive()]:
        wait([rank.sentinel for rank in living])
        if any(rank.exitcode for rank in ranks):
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
    gc.freeze()  # else each collection would look at all that is imported, and copy its pages
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
