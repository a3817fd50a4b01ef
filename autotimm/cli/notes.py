"""Remarks of a verb besides its result: lines on stderr that begin with its name."""

from __future__ import annotations

import sys


def note(verb: str, text: str) -> None:
    """Prints ``autotimm VERB: text`` on stderr, in one line."""
    print(f"autotimm {verb}: {' '.join(text.split())}", file=sys.stderr, flush=True)
