"""What the tests cost: CPU seconds by file, of the tests' process and of all that it starts.

    python benchmarks/suite_costs.py                 the tiers of `make test` and `make test-slow`
    python benchmarks/suite_costs.py --out benchmarks/results/tests.md -- -m slow tests/models

What follows ``--`` goes to pytest in place of the tiers. CPU seconds hardly depend on what else the
machine does, as wall time does. Every descendant is counted, also one that outlives its parent: on
Linux this process adopts those (``PR_SET_CHILD_SUBREAPER``) and waits for them.

As a pytest plugin (``-p suite_costs``) it writes a line of JSON a test into the folder that
``SUITE_COSTS`` names.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TIERS = ("not slow and not release", "slow and not release")
SUBREAPER = 36  # of <linux/prctl.h>
GRACE = 10  # seconds


def cpu_seconds() -> float:
    """Of this process, of its children that have ended, and of the programs of tests/forked.py."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(kind) for kind in kinds]
    forked = getattr(sys.modules.get("forked"), "cpu_seconds", 0.0)
    return sum(one.ru_utime + one.ru_stime for one in used) + forked


class Plugin:
    """Notes what was used between the end of one test and the end of the next."""

    def __init__(self, folder: str) -> None:
        self.path = Path(folder, f"{os.getpid()}.jsonl")
        self.before = cpu_seconds()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        now = cpu_seconds()
        with self.path.open("a") as file:
            file.write(json.dumps([nodeid, now - self.before]) + "\n")
        self.before = now


def pytest_configure(config: Any) -> None:
    controller = getattr(config.option, "dist", "no") != "no" and not hasattr(config, "workerinput")
    if not controller:  # with xdist the workers run the tests
        config.pluginmanager.register(Plugin(os.environ["SUITE_COSTS"]))


def measured(words: list[str]) -> tuple[dict[str, float], float, float, int]:
    """CPU seconds by test, CPU seconds of everything, wall seconds and the exit code of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        env = os.environ | {"SUITE_COSTS": folder, "PYTHONPATH": here}
        command = [sys.executable, "-m", "pytest", "-p", "suite_costs", *words]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=env)
        code = wait_for_all(process)
        after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - start
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        lines = [line for file in Path(folder).iterdir() for line in file.open()]
    return dict(map(json.loads, lines)), used, wall, code


def wait_for_all(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process, when all that it has started are gone too. Daemons, which stay,
    are not waited for longer than ``GRACE``, and not counted."""
    code, end = process.wait(), time.monotonic() + GRACE
    while time.monotonic() < end:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.1)
        except ChildProcessError:
            break
    return code


def table(tests: dict[str, float], most: int = 40) -> str:
    """The dearest files and tests, as Markdown."""
    files: dict[str, list[float]] = collections.defaultdict(list)
    for test, seconds in tests.items():
        files[test.split("::")[0]].append(seconds)
    rows = sorted(files.items(), key=lambda row: -sum(row[1]))
    lines = ["| file | tests | CPU seconds |", "|---|---|---|"]
    lines += [f"| {name} | {len(each)} | {sum(each):.1f} |" for name, each in rows[:most]]
    rest = rows[most:]
    if rest:
        count, seconds = sum(len(each) for _, each in rest), sum(sum(each) for _, each in rest)
        lines.append(f"| {len(rest)} more | {count} | {seconds:.1f} |")
    dear = sorted(tests.items(), key=lambda row: -row[1])[: most // 2]
    lines += ["", "| test | CPU seconds |", "|---|---|"]
    lines += [f"| {name} | {seconds:.1f} |" for name, seconds in dear]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="the tables go here too")
    parser.add_argument("words", nargs="*", help="pytest's, after --")
    given = parser.parse_args()
    xdist = shlex.split("-n logical --dist loadfile --no-loadscope-reorder")
    runs = [given.words] if given.words else [[*xdist, "-m", tier] for tier in TIERS]
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    parts, failed = [], 0
    for words in runs:
        tests, used, wall, code = measured(words)
        failed = failed or code
        head = f"`pytest {' '.join(words)}`: {len(tests)} tests, {used:.0f} CPU seconds in all"
        parts.append(f"{head}, {wall:.0f} s of wall time\n\n{table(tests)}")
    text = "\n\n".join(parts) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text)
    return failed


if __name__ == "__main__":
    sys.exit(main())
