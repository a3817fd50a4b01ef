"""The run lengths of an RLE: read from its text, and looked up at some rows and columns.

Invariants: nothing here trusts its input; no dense mask is made. ``masks.py`` has what others use.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def read_runs(counts: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
    """Reads the run lengths, int64, from compressed counts (cocoapi's ``rleFrString``); their sums.

    A number is 5 bits a character, lowest first, from "0" on; 32 means that more follow, 16 in the
    last one a negative number. From the fourth on, a number is the difference to the one before the
    last.
    """
    data = "".join(counts).encode("utf-8", "surrogatepass")
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    ends = np.cumsum([len(text) for text in counts])
    if codes.size != ends[-1] or not all(counts) or codes.min() < 0 or codes.max() > 63:
        raise ValueError("RLE counts are broken")
    if (codes[ends - 1] & 32).any():
        raise ValueError("RLE counts are broken")
    last = np.flatnonzero(codes < 32)
    first = np.concatenate(([0], last[:-1] + 1))
    place = np.arange(codes.size) - np.repeat(first, last - first + 1)
    if place.max() > 6:  # 35 bits: more than any image needs
        raise ValueError("RLE counts are broken")
    values = np.add.reduceat((codes & 31) << (5 * place), first)
    values -= np.where(codes[last] & 16, np.int64(1) << (5 * (place[last] + 1)), 0)
    starts = np.searchsorted(last, ends[:-1])
    every = np.split(values, starts)  # views
    for runs in every:
        runs[1::2].cumsum(out=runs[1::2])
        runs[2::2].cumsum(out=runs[2::2])
    if values.min() < 0:
        raise ValueError("RLE counts are broken")
    return every, np.add.reduceat(values, np.concatenate(([0], starts)))


def look_up(
    runs: np.ndarray, height: int, columns: np.ndarray, rows: np.ndarray, out: np.ndarray
) -> None:
    """Writes what a mask says at some columns and rows, both ascending, to ``out`` [x, y]."""
    first = np.empty(len(columns), np.bool_)  # of cells that share a column
    first[0] = True
    np.not_equal(columns[1:], columns[:-1], out=first[1:])
    different = columns[first]
    # Where in the columns, one after the other, each run but the first begins.
    x, y = np.divmod(runs[:-1].cumsum(), height)
    column = different.searchsorted(x)
    here = different[np.minimum(column, len(different) - 1)] == x
    edges = np.zeros(len(runs) + 1, np.int64)
    edges[1:-1] = column * len(rows) + here * rows.searchsorted(y)
    edges[-1] = len(different) * len(rows)
    inside = np.arange(len(runs), dtype=np.uint8) & 1  # runs of 0 and of 1 take turns
    covered = inside.repeat(edges[1:] - edges[:-1]).reshape(-1, len(rows))
    out[...] = covered[first.cumsum() - 1]
