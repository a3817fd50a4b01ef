"""Remarks of a verb besides its result: lines on stderr that begin with its name."""

from __future__ import annotations

import sys
import warnings


def note(verb: str, text: str) -> None:
    """Prints ``autotimm VERB: text`` on stderr, in one line."""
    print(f"autotimm {verb}: {' '.join(text.split())}", file=sys.stderr, flush=True)


def shorten_warnings(verb: str) -> None:
    """Has warnings for users printed as notes, without the file and the line of code; those for
    programmers, such as deprecations, stay as they are."""
    whole = warnings.formatwarning

    def short(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if not issubclass(category, UserWarning):
            return whole(message, category, filename, lineno, line)
        return f"autotimm {verb}: {' '.join(str(message).split())}\n"

    warnings.formatwarning = short
