"""What the benchmarks share: contestants in processes of their own, their memory, tables.

Every contestant runs as ``python <script> ...``, does its imports and preparations, times its work
alone (``measured``) and prints one line of JSON. So no contestant warms another's allocator, and
the packages compared with may live in an interpreter of their own (``--peers-python``), which they
need where their pins clash with the project's. Repeats go round all contestants, so that what else
the machine does meets each of them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PEERS = {"webdataset": "webdataset", "mosaicml": "streaming", "litdata": "litdata"}
"""The packages compared with, and the module that each installs."""
_PACKAGES = {"webdataset": "webdataset", "mosaicml": "mosaicml-streaming", "litdata": "litdata"}
_INSTALL = "pip install -e '.[peers]'"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one contestant.

    Attributes:
        images: what it worked through.
        seconds: of its work; of the whole process where the contestant is a plain command.
        cpu: seconds of the same, of all its processes together.
        peak: bytes of memory, of all its processes together, shared pages counted once; None where
            it was not watched.
        more: what else the contestant told.
    """

    images: int
    seconds: float
    cpu: float
    peak: int | None
    more: dict[str, Any]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark with peers has."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--data", type=Path, help="a COCO folder to use in place of synthetic images")
    add("--images", type=int, default=1500, help="synthetic images (1500)")
    add("--repeats", type=int, default=5, help="rounds over all contestants; medians count (5)")
    add("--seed", type=int, default=0, help="of the synthetic images (0)")
    add("--work", type=Path, help="folder for everything written (default: a temporary one)")
    add("--peers", default=",".join(PEERS), help="of webdataset,mosaicml,litdata, or none (all)")
    add("--peers-python", default=sys.executable, help="interpreter that has the peers (this one)")
    add("--quick", action="store_true", help="a few images, once: does it run at all?")
    return options


def peers(names: str, python: str) -> list[str]:
    """Those of the peers named that can be imported; says of the others how to get them."""
    found = []
    for name in [] if names == "none" else names.split(","):
        if name not in PEERS:
            sys.exit(f"--peers: {name!r} is none of {', '.join(PEERS)}, nor 'none'")
        code = f"import importlib.util as i, sys; sys.exit(i.find_spec('{PEERS[name]}') is None)"
        if subprocess.run([python, "-c", code], check=False).returncode:
            print(f"{name}: not installed, left out: {_INSTALL} (see benchmarks/README.md)\n")
        else:
            found.append(name)
    return found


def machine(names: Sequence[str], python: str) -> str:
    """One line on the machine and the versions compared."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    code = (
        f"import importlib.metadata as m; print(*map(m.version, {[_PACKAGES[n] for n in names]}))"
    )
    out = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    versions = [f"{n} {v}" for n, v in zip(names, out.split(), strict=True)]
    own = [f"{n} {importlib.metadata.version(n)}" for n in ("numpy", "torch")]
    python_version = f"Python {platform.python_version()}"
    return ", ".join([f"{model}, {os.cpu_count()} cores", python_version, *own, *versions])


def rounds(
    contestants: dict[str, Callable[[bool], Run]], repeats: int, watch: bool = True
) -> dict[str, list[Run]]:
    """Runs all contestants in turn, ``repeats`` times, after one round that is not timed.

    Args:
        contestants: each is called with whether to watch its memory.
        repeats: timed rounds.
        watch: make the first round, which warms caches and is watched for memory; without it every
            round is both.
    """
    peak = {name: run(True) for name, run in contestants.items()} if watch else {}
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    for number in range(repeats):
        for name, run in contestants.items():
            progress(f"round {number + 1} of {repeats}: {name}")
            one = run(not watch)
            memory = peak[name].peak if watch else one.peak
            runs[name].append(Run(one.images, one.seconds, one.cpu, memory, one.more))
    progress("")
    return runs


def progress(text: str) -> None:
    """Says on stderr, if that is a terminal, what is being measured."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def rate(runs: Sequence[Run]) -> float:
    """Images a second, the median of the runs."""
    return statistics.median(run.images / run.seconds for run in runs)


def cpu_ms(runs: Sequence[Run]) -> float:
    """CPU milliseconds an image, the median of the runs."""
    return statistics.median(1e3 * run.cpu / run.images for run in runs)


def measured(work: Callable[[], int], **more: Any) -> None:
    """Times a contestant's work, which returns its images, and prints what ``contestant`` reads."""
    start, cpu = time.perf_counter(), cpu_seconds()
    images = work()
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    print(json.dumps({"images": images, "seconds": seconds, "cpu": cpu, **more}), flush=True)


def contestant(script: Path, *words: object, python: str = sys.executable) -> Callable[..., Run]:
    """A contestant that ``measured`` itself, in a process of its own."""

    def run(watch: bool) -> Run:
        out, _, _, peak = _call([python, str(script), *map(str, words)], watch)
        told = json.loads(out.splitlines()[-1])
        return Run(told.pop("images"), told.pop("seconds"), told.pop("cpu"), peak, told)

    return run


def command(*words: object, images: int) -> Callable[..., Run]:
    """A contestant that is a plain command: the time of its whole process counts."""

    def run(watch: bool) -> Run:
        _, seconds, cpu, peak = _call(list(map(str, words)), watch)
        return Run(images, seconds, cpu, peak, {})

    return run


def _call(words: list[str], watch: bool) -> tuple[str, float, float, int | None]:
    """Runs a command: its output, seconds, CPU seconds and, if watched, its peak of memory."""
    before, start = cpu_seconds(), time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with _watched(process.pid) if watch else contextlib.nullcontext([None]) as peak:
        out, err = process.communicate()
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - before
    if process.returncode:
        sys.exit(f"{' '.join(words)}\nended with {process.returncode}:\n{err}")
    return out, seconds, cpu, peak[0]


def cpu_seconds() -> float:
    """CPU seconds of this process, of its children that have ended, and of those that live."""
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    living = 0
    for pid in _tree(os.getpid())[1:]:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            living += sum(map(int, fields[11:15]))  # utime, stime, and of its own dead children
    return sum(u.ru_utime + u.ru_stime for u in own) + living / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _watched(pid: int) -> Iterator[list[int | None]]:
    """The peak of a process tree's proportional set size, every 50 ms; None where /proc is not."""
    peak: list[int | None] = [None]
    done = threading.Event()

    def watch() -> None:
        pause = 0.05
        while not done.wait(pause):
            begin = time.perf_counter()
            total = sum(_memory(p) for p in _tree(pid))
            peak[0] = max(peak[0] or 0, total) or None
            # The system counts gigabytes page by page, and halts the process meanwhile.
            pause = max(0.05, 10 * (time.perf_counter() - begin))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:  # grows as it goes
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, children.read_text().split())
    return found


def _memory(pid: int) -> int:
    """Bytes of a process, pages that several map divided among them.

    File pages are left out: they are the page cache, which the kernel takes back at will and which
    those who read() fill just as those who map, unseen.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0
    sizes = {line.split()[0]: int(line.split()[1]) for line in lines}
    return 1024 * (sizes.get("Pss_Anon:", 0) + sizes.get("Pss_Shmem:", 0))


def markdown(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, the first column to the left, the others to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
