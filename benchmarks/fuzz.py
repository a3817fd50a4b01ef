"""What parsers do with broken input: the properties of ``tests/fuzz``, tried for minutes each.

    python benchmarks/fuzz.py --minutes 10

Every property has a process of its own, which may take 2 GB of address space beyond what it begins
with, and 60 seconds an example. Its examples follow from ``--seed``. Found counts the different
faults of a property; the smallest input for each that Hypothesis finds is printed to stderr.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import multiprocessing
import resource
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
_ROOM = 2 * 2**30  # bytes
_HUNG = 60  # seconds
_ROUND = 100  # examples after which the clock is looked at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="CPU minutes for each property")
    parser.add_argument("--quick", action="store_true", help="a second each, to see that it runs")
    parser.add_argument("--only", default="", help="properties whose names hold this")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    minutes = 1 / 60 if options.quick else options.minutes
    sys.path[:0] = [str(TESTS), str(TESTS / "fuzz")]
    lines = [
        "| parser | property | examples | CPU s | found |",
        "|---|---|---|---|---|",
    ]
    for module in sorted(path.stem for path in (TESTS / "fuzz").glob("test_fuzz_*.py")):
        tests = vars(importlib.import_module(module))
        for name in [name for name in tests if name.startswith("test_")]:
            if options.only in f"{module}::{name}" and hasattr(tests[name], "strategies"):
                examples, seconds, found = tried(tests[name], minutes * 60, options.seed)
                parsed = module.removeprefix("test_fuzz_")
                cells = (parsed, name.removeprefix("test_"), f"{examples:,}", f"{seconds:.0f}")
                lines.append(f"| {' | '.join(cells)} | {found} |".replace("_", " "))
                print(lines[-1], file=sys.stderr, flush=True)
    print("\n".join(lines))


def tried(test: Any, seconds: float, first: int) -> tuple[int, float, int | str]:
    """Tries a property in a process of its own.

    Returns:
        How many examples, in how many CPU seconds, and how many faults were found or how the
        process ended.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_try, args=(test, seconds, first, theirs)
    )
    process.start()
    theirs.close()
    told: tuple[int, float, int | str] = (0, 0.0, 0)
    try:
        while True:
            told = ours.recv()
    except EOFError:
        process.join()
    if process.exitcode:
        return told[0], told[1], f"ended with {process.exitcode}"
    return told


def _try(test: Any, seconds: float, first: int, to: Connection) -> None:
    from hypothesis import HealthCheck, Phase, given, seed, settings  # of the extra dev
    from hypothesis import strategies as st

    had = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (had + _ROOM, had + _ROOM))
    count, faults = 0, set()

    def counted(drawn: tuple[Any, ...]) -> None:
        nonlocal count
        count += 1
        faulthandler.dump_traceback_later(_HUNG, exit=True)
        test.check(*drawn)

    chosen = settings(
        max_examples=_ROUND,
        database=None,
        deadline=None,
        suppress_health_check=[*HealthCheck],
        phases=set(Phase) - {Phase.explain},
        report_multiple_bugs=False,
    )
    began = time.process_time()
    while (spent := time.process_time() - began) < seconds or not count:
        try:
            seed(first)(chosen(given(st.tuples(*test.strategies))(counted)))()
        # Whatever a parser raises that is not its refusal is what is looked for.
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            if (place.filename, place.lineno) not in faults:
                faults.add((place.filename, place.lineno))
                traceback.print_exception(error, limit=-6)
        faulthandler.cancel_dump_traceback_later()
        first += 1
        to.send((count, time.process_time() - began, len(faults)))
    to.send((count, spent, len(faults)))


if __name__ == "__main__":
    main()
