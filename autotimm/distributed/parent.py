"""Processes by number, and the end of the launcher that started this one.

The system soon gives the number of a process to another one. With the times at which the process
and the machine were started, the number is unique.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autotimm.distributed.launcher import find_launch

_SET_SIGNAL = 1  # PR_SET_PDEATHSIG in linux/prctl.h


@contextlib.contextmanager
def ended_with_torchrun() -> Iterator[None]:
    """This process receives SIGTERM if torchrun, which started it, dies inside the block.

    A signal that torchrun does not handle (SIGUSR2, SIGKILL) ends it at once, and its processes
    would train on without a launcher. This works only on Linux, and only if torchrun is the parent,
    not a script between them. Data workers do not inherit it.
    """
    launch = find_launch()
    agent = launch.agent if launch is not None else ""
    if sys.platform != "linux" or not agent or agent != _name(os.getppid()):
        yield
        return
    prctl = ctypes.CDLL(None).prctl
    prctl(_SET_SIGNAL, int(signal.SIGTERM))
    try:
        if agent != _name(os.getppid()):  # it died before it was watched
            signal.raise_signal(signal.SIGTERM)
        yield
    finally:
        prctl(_SET_SIGNAL, 0)


def identity() -> dict[str, Any]:
    """This process, by which :func:`is_gone` recognises it from another process of this machine."""
    return {"host": platform.node(), "boot": _boot(), "pid": os.getpid(), "ticks": _ticks()}


def is_gone(known: Any) -> bool:
    """Whether the process of an :func:`identity` has surely ended.

    False for a process of another machine, of which nothing is known here.
    """
    if not isinstance(known, dict) or known.get("host") != platform.node() or not _boot():
        return False
    if known.get("boot") != _boot():
        return True
    pid = known.get("pid")
    return isinstance(pid, int) and _ticks(pid) != known.get("ticks")


def still_runs(known: Any) -> bool:
    """Whether the process of an :func:`identity` surely runs, and is another one than this."""
    if not isinstance(known, dict) or known.get("host") != platform.node() or is_gone(known):
        return False
    pid, ticks = known.get("pid"), known.get("ticks")
    return isinstance(pid, int) and pid != os.getpid() and bool(ticks) and _ticks(pid) == ticks


def _boot() -> str:
    """A text that differs from start to start of a machine; "" where the system has none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _ticks(pid: int | None = None) -> str:
    """When a process was started, in ticks since the machine's start; "" if there is none."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid or os.getpid()}/stat").read_text()
        state, *fields = text.rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]  # zombies have ended
    return ""


def _name(pid: int) -> str:
    """As the launcher's names of processes."""
    return f"{platform.node()}-{pid}-{_ticks(pid)}"
