"""What a process prints passes the filter, also where a library copies it."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autotimm.redaction.secrets import learn, learn_named, learn_value
from autotimm.redaction.values import redacted

_VARIABLE = re.compile(
    r"(?i)(?=.*(?:SECRET|TOKEN|PASSW|CREDENTIAL|_KEY|ACCESS_KEY_ID|_SAS))"
    r"(?!.*(?:_FILE|_PATH|_DIR|_SOCK|_CREDENTIALS|_URL|_URI)$)"
)

_guarding = False


def guard_process() -> None:
    """Sends all that this process prints through the filter, and learns what it was started with.

    Warnings, tracebacks and log lines go through stdout and stderr, too. Programs call this first;
    a process that is forked later inherits it, and one that is spawned calls it again.
    """
    words = dict.fromkeys([*sys.orig_argv, *sys.argv])
    for word in words:
        learn(word)
        _learn_config(word.partition("=")[2] or word)
    learn_named(" ".join(words))  # --token VALUE: a name and its value as two words
    for name, value in os.environ.items():
        learn(value)
        if _VARIABLE.match(name):
            learn_value(value)
    global _guarding
    _guarding = True
    guard_streams()


def guard_streams() -> None:
    """In a process that :func:`guard_process` guards: puts the filter first again.

    A library that copies what is printed, as wandb does from its import on, puts itself before the
    filter, and would copy secrets.
    """
    for stream in (sys.stdout, sys.stderr):
        if _guarding and stream is not None and not _is_guarded(stream):
            _guard(stream)


@contextlib.contextmanager
def shown_to_library() -> Iterator[None]:
    """Runs code of a library that records what this process was started with and what it prints.

    The library finds ``sys.argv`` without secrets, and what it copies of the output passes the
    filter first.
    """
    words, shown = sys.argv, redacted(sys.argv)
    try:
        if shown != words:
            sys.argv = shown
        yield
    finally:
        if sys.argv is shown:
            sys.argv = words
        guard_streams()


def _learn_config(path: str) -> None:
    """Learns the secrets in a config that the command line names."""
    if not re.search(r"(?i)\.(ya?ml|json|toml)$", path):
        return
    # A pipe may never answer, and what it says can be read only once. What cannot be read, the
    # parser reports.
    with contextlib.suppress(OSError, ValueError):
        if Path(path).is_file():
            with Path(path).open(errors="replace") as file:
                learn(file.read(1 << 20))  # a longer file is no config


def _guard(stream: Any) -> None:
    write = stream.write

    def guarded(text: str) -> int:
        write(redacted(text))
        return len(text)

    guarded.filters = True  # type: ignore[attr-defined]
    stream.write = guarded


def _is_guarded(stream: Any) -> bool:
    return hasattr(getattr(stream, "write", None), "filters")
