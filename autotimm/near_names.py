"""The known name that a misspelt flag or key was probably meant to be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile

_OTHER_NAMES = {
    "ckpt": "--checkpoint",
    "ckptpath": "--checkpoint",
    "conf": "--draw-score",
    "imgsz": "--image-size",
    "model": "--checkpoint",
    "output": "--out",
    "source": "--data",
    "weights": "--checkpoint",
}
"""What other programs, and ``fit``, call some flags; ``cli/flags.py`` has the table for ``fit``."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """`` (did you mean --x?)`` for a name that is close to a known one, else ``""``.

    Args:
        name: a flag, or the path of a key in a config, such as ``data.batchsize``.
        known: the names to choose from; the first of equally close ones is taken.
    """
    import difflib  # of use for what is misspelt alone

    names = [*known]
    near = [one for one in names if bare(one) == bare(name)]
    near = near or difflib.get_close_matches(name, names, 1, 0.8)
    if not near:
        ends = difflib.get_close_matches(bare(name), [bare(one) for one in names], 1, 0.75)
        near = [one for one in names if bare(one) in ends]
    return f" (did you mean {near[0]}?)" if near else ""


def unknown_flag(words: Sequence[str], known: Iterable[str]) -> str | None:
    """The first flag among the words of a command line that is not known, with what was probably
    meant: ``unrecognized arguments: --x (did you mean --y?)``; None if all are known."""
    names = [*known]
    for word in takewhile(lambda word: word != "--", words):
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in names:
            other = _OTHER_NAMES.get(bare(flag))
            near = f" (did you mean {other}?)" if other in names else suggestion(flag, names)
            return f"unrecognized arguments: {flag}{near}"
    return None


def bare(name: str) -> str:
    """The last part of a flag or key, without case, ``-`` and ``_``: ``batchsize``."""
    return re.sub(r"[-_]", "", name.rpartition(".")[2]).lower()
