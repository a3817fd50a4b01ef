"""The run lengths of an RLE: read from its text, looked up at some rows and columns, and found in
dense windows of masks.

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


def read_one(counts: str) -> list[int] | np.ndarray:
    """Reads the run lengths of one mask, as ``read_runs``; a short text in a fifth of its time."""
    if not 0 < len(counts) <= _SHORT:
        return read_runs([counts])[0][0]
    runs: list[int] = []
    value = shift = 0
    for code in counts.encode("utf-8", "surrogatepass"):
        part = code - 48
        if not 0 <= part <= 63 or shift > 30:
            raise ValueError("RLE counts are broken")
        value |= (part & 31) << shift
        shift += 5
        if part < 32:
            if part & 16:
                value -= 1 << shift
            if len(runs) > 2:
                value += runs[-2]
            runs.append(value)
            value = shift = 0
    if shift or min(runs) < 0:
        raise ValueError("RLE counts are broken")
    return runs


_SHORT = 200  # characters; NumPy's calls take as long as Python's loop over these


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


def edges(flat: np.ndarray, windows: np.ndarray, height: int, width: int) -> np.ndarray:
    """Finds where runs of ones begin and end in windows of masks, outside of which all is zero.

    Args:
        flat: bool, the columns of all windows, one behind the other. Each column has a zero above
            and one below it, which end every run in it.
        windows: [n, 5] int64, in the order of ``flat``: the number of the mask, then the window's
            top, left, height and width in it. A mask may have several, from left to right.
        height: of every mask.
        width: of every mask.

    Returns:
        The first pixel of each run of ones and the pixel after its last, in turns, ascending.
        Pixel (row i, column j) of mask m is ``m * (height * width + 1) + j * height + i``.
    """
    mask, top, left, high, wide = windows.T
    ends = np.cumsum((high + 2) * wide)
    found = np.flatnonzero(flat[1:] != flat[:-1])
    of_window = np.repeat(np.arange(len(windows)), np.diff(found.searchsorted(ends), prepend=0))
    starts = ends - (high + 2) * wide
    column, row = np.divmod(found - starts[of_window], high[of_window] + 2)
    corner = mask * (height * width + 1) + left * height + top
    return corner[of_window] + column * height + row


def between(edges: np.ndarray, count: int, pixels: int) -> list[np.ndarray]:
    """The run lengths of ``count`` masks of so many pixels, of what :func:`edges` found in them."""
    # A run down to the last row goes on in the first one of the next column.
    apart = np.ones(len(edges), np.bool_)
    apart[1:-1:2] = apart[2::2] = edges[1:-1:2] != edges[2::2]
    edges = edges[apart]
    starts = np.arange(count + 1) * (pixels + 1)
    bounds = np.concatenate((starts[:-1], edges, starts[:-1] + pixels))
    bounds.sort(kind="stable")
    lengths = np.diff(bounds)  # those between two masks are of no run
    before = edges.searchsorted(starts)
    first = before[:-1] + 2 * np.arange(count)
    last = first + np.diff(before)
    # pycocotools writes no last run of length 0.
    last -= (lengths[last] == 0) & (last > first)
    return [lengths[a : b + 1] for a, b in zip(first.tolist(), last.tolist(), strict=True)]
