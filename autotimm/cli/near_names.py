"""The known name that a misspelt flag or key was probably meant to be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def suggestion(name: str, known: Iterable[str]) -> str:
    """`` (did you mean --x?)`` for a name that is close to a known one, else ``""``.

    Args:
        name: a flag, or the path of a key in a config, such as ``data.batchsize``.
        known: the names to choose from; the first of equally close ones is taken.
    """
    names = [*known]
    near = [one for one in names if bare(one) == bare(name)]
    near = near or difflib.get_close_matches(name, names, 1, 0.8)
    if not near:
        ends = difflib.get_close_matches(bare(name), [bare(one) for one in names], 1, 0.75)
        near = [one for one in names if bare(one) in ends]
    return f" (did you mean {near[0]}?)" if near else ""


def bare(name: str) -> str:
    """The last part of a flag or key, without case, ``-`` and ``_``: ``batchsize``."""
    return re.sub(r"[-_]", "", name.rpartition(".")[2]).lower()
