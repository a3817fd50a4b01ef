"""What holds of every parser: a value or one line, in bounded memory; and how often it is tried.

The quick tests try a few examples, always the same. ``benchmarks/fuzz.py`` tries the same
properties for minutes.
"""

from __future__ import annotations

import contextlib
import resource
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotimm.structures import InputError

ROOM = 2**30
"""Bytes of address space that a parser may take beyond what the process has."""
LONGEST = 4000
"""Characters of a line that says what is wrong."""

Test = Callable[..., None]


def fuzzed(*strategies: st.SearchStrategy[Any], examples: int = 40) -> Callable[[Test], Test]:
    """Makes a test of a check that is given what the strategies draw.

    Args:
        strategies: one an argument.
        examples: how many the quick tests try.

    Returns:
        The test, with ``check`` and ``strategies`` to try it otherwise.
    """
    chosen = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[*HealthCheck],
    )

    def made(check: Test) -> Test:
        test: Any = chosen(given(*strategies)(check))
        test.check, test.strategies = check, strategies
        return test

    return made


@contextlib.contextmanager
def bounded(room: int = ROOM) -> Iterator[None]:
    """What happens within gets no more memory than ``room`` bytes: MemoryError."""
    had = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (had + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcome(parse: Callable[[], Any], *errors: type[Exception], naming: str = "") -> Any:
    """What ``parse`` returns; None where it refuses in one line.

    Any other error, and a warning, is a fault, and so is a line that ends nowhere.

    Args:
        parse: parses something within itself.
        errors: further types that are a refusal of this parser, by its docstring.
        naming: what the line has to contain: the file's name, or the flag's.
    """
    refusals = errors or (InputError,)
    try:
        with bounded(), warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", DeprecationWarning)  # between libraries: not shown
            return parse()
    except refusals as error:
        line = str(error)
        assert line and line.isprintable() and len(line) <= LONGEST, line
        assert naming in line, line
        return None
