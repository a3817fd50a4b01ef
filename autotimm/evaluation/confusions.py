"""Which classes the model confuses: the part of the matrix that fits a picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_MOST_CLASSES = 40  # on a side of the matrix: more cannot be read


class Confusions(NamedTuple):
    """Rows the truth, columns what was found.

    Attributes:
        names: of the K classes that are shown, and "nothing" last.
        counts: [K + 1, K + 1].
        shares: of all that a row has, also of what fell to classes that are not shown.
        left_out: how many classes with fewer confusions are not shown.
    """

    names: list[str]
    counts: NDArray[np.float64]
    shares: NDArray[np.float64]
    left_out: int


def confusions(matrix: NDArray[np.uint64], names: list[str]) -> Confusions:
    """The part of a matrix to show: at most 40 classes, those with the most confusions.

    Args:
        matrix: [C + 1, C + 1] as in :class:`autotimm.evaluation.mistakes.Errors`.
        names: of the C classes.
    """
    whole = matrix.astype(np.float64)
    count = len(names)
    wrong = whole.sum(axis=1) + whole.sum(axis=0) - 2 * whole.diagonal()
    # A class without an instance and without a detection shows nothing.
    there = [k for k in range(count) if whole[k].any() or whole[:, k].any()]
    kept = sorted(sorted(there, key=lambda k: -wrong[k])[:_MOST_CLASSES])
    shown = [*kept, count]
    counts = whole[np.ix_(shown, shown)]
    shares = counts / np.maximum(whole[shown].sum(axis=1, keepdims=True), 1)
    return Confusions(
        [*(names[k] for k in kept), "nothing"], counts, shares, len(there) - len(kept)
    )
