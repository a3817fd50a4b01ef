"""Code on several ranks: forks with torchrun's variables, or what torchrun itself starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forked

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def on_ranks(
    code: str, folder: Path, *arguments: object, ranks: int = 2, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs code, which may import what lies in this folder, on each rank of one node.

    The ranks are forks (:mod:`forked`); :func:`on_torchrun` starts them as users do.

    Args:
        code: of a script.
        folder: where the script is written to.
        arguments: of the script.
        ranks: how many there are.
        env: more variables of the environment.
    """
    script = _script(code, folder)
    return forked.run_ranks(script, *arguments, ranks=ranks, env=_environment() | env, timeout=1100)


def on_torchrun(
    code: str, folder: Path, *arguments: object, ranks: int = 2, **env: str
) -> subprocess.CompletedProcess[str]:
    """As :func:`on_ranks`, by torchrun: for what depends on the launcher."""
    words = [*TORCHRUN, f"--nproc-per-node={ranks}", _script(code, folder), *arguments]
    return subprocess.run(
        [str(word) for word in words],
        env=_environment() | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,
    )


def on_nodes(
    code: str, folder: Path, *arguments: object, restarts: int
) -> list[subprocess.CompletedProcess[str]]:
    """As :func:`on_ranks`, but a call of torchrun a rank, as on two nodes that meet over c10d.

    Args:
        code: of a script.
        folder: where the script is written to.
        arguments: of the script.
        restarts: how often each call may start its process again.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        *("--nnodes=2", "--nproc-per-node=1", f"--max-restarts={restarts}", "--rdzv-id=two"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"),
    ]
    words = [*TORCHRUN[:-1], *options, _script(code, folder), *arguments]
    calls = [
        subprocess.Popen(
            [str(word) for word in words],
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda call: call.communicate(timeout=1100)[0], calls))
    return [
        subprocess.CompletedProcess(words, call.returncode, text, "")
        for call, text in zip(calls, said, strict=True)
    ]


def _script(code: str, folder: Path) -> Path:
    script = folder / "each_rank.py"
    script.write_text(textwrap.dedent(code))
    return script


def _environment() -> dict[str, str]:
    tests = str(Path(__file__).parent)
    here = [path for path in sys.path if path.startswith(tests)]  # the folders of the tests
    here += filter(None, [os.environ.get("PYTHONPATH")])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(here)}
