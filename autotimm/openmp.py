"""Has threads that wait for each other sleep, so that a run on a CPU shares it with other work.

torch divides an operation among OpenMP threads, one for each core, and each operation ends when the
last of them has done its part. By default, a thread that is done before keeps its core busy for
milliseconds to see whether the others are (libgomp: 300,000 turns of a loop). If another program
runs on these cores, the thread that is waited for may be the one that gets none: a step that takes
a second beside no other work then takes ten. Threads that sleep leave their cores to it, and all
threads are as fast as one or faster (``benchmarks/threads.py``). The number of threads, by which
sums are divided, and so the losses stay the same.

OpenMP reads the environment once, when torch is imported.
"""

from __future__ import annotations

import os
import sys

_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What says how threads wait: of any OpenMP, of libgomp, of Intel's and LLVM's."""

_late = False


def wait_asleep() -> None:
    """Sets it for this process, if torch is not yet imported, and for those that it starts.

    What the user has set stays.
    """
    global _late
    if not any(name in os.environ for name in _SETTINGS):
        _late = "torch" in sys.modules
        os.environ["OMP_WAIT_POLICY"] = "passive"


def was_late() -> bool:
    """Whether :func:`wait_asleep` came after torch had been imported, without effect on it."""
    return _late
