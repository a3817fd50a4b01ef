"""How often an epoch has each image: images of rare classes come more often.

The factors are those of LVIS (Gupta et al. 2019, https://arxiv.org/abs/1908.03195, appendix B.1):
f(c) is the share of the images that have category c, r(c) = max(1, sqrt(t / f(c))) for a threshold
t, and an image's factor is the largest r(c) of its categories; 1 without any.

A factor's whole part counts in every epoch. Its fraction is a share of the epochs: the fractions
are laid end to end, in the order of the data, on a line as long as their sum, and points at a
distance of 1 mark the images that come once more in an epoch. From one epoch to the next the points
move by the golden ratio, which spreads them as evenly as can be (Weyl's sequence).

Invariants:

* an image comes as often as its factor says, rounded up or down, in every epoch;
* every epoch has the same number of samples, the sum of the factors, rounded;
* over epochs the average count of an image approaches its factor, up to what rounding the sum
  changes (less than half a sample an epoch for all images together);
* counts depend on factors, seed and epoch alone; memory is 1 byte an image, 16 more for one whose
  factor has a fraction, and in an epoch 1 more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_PHASE = 5  # a spawn key, apart from those of order.py
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio
_BITS = 2**64


def repeat_factors(
    images: int, owners: NDArray[np.int64], categories: NDArray[np.int64], threshold: float
) -> NDArray[np.float32]:
    """Each image's factor.

    Args:
        images: how many there are.
        owners: [n] numbers of images, from 0.
        categories: [n] category ids; each pair of image and category occurs once. A category that
            more than ``threshold * images`` images have may be missing from others.
        threshold: the share of the images, above 0, below which a category is rare.

    Returns:
        [images], 1 or more; a float32 leaves no fraction where the quotient is 1.
    """
    factors = np.ones(images, np.float32)
    _, which, counts = np.unique(categories, return_inverse=True, return_counts=True)
    of_category = np.sqrt(np.maximum(threshold * images / counts, 1)).astype(np.float32)
    np.maximum.at(factors, owners, of_category[which])
    return factors


class Repeats:
    """Counts how often each image comes in an epoch.

    Args:
        factors: [images] from ``repeat_factors``.
        threshold: that they were made with.

    Attributes:
        threshold: the same.
        samples: of an epoch.
    """

    def __init__(self, factors: NDArray[np.float32], threshold: float) -> None:
        self.threshold = threshold
        whole = np.floor(factors)
        self._some = np.flatnonzero(factors > whole)
        fractions = (factors - whole)[self._some].astype(np.float64)
        # cumsum adds one after the other on every machine; sum() does not.
        total = float(np.cumsum(fractions)[-1]) if len(fractions) else 0.0
        self._extra = round(total)
        if self._extra < total:
            fractions *= self._extra / total
        elif self._extra > total:  # none grows beyond 1
            rest = len(fractions)
            fractions = 1 - (1 - fractions) * ((rest - self._extra) / (rest - total))
        self._ends = np.cumsum(fractions)
        self._whole = whole.astype(np.min_scalar_type(int(whole.max(initial=0)) + 1))
        self.samples = int(self._whole.sum(dtype=np.int64)) + self._extra

    def summary(self) -> str:
        """One line that says what an epoch has."""
        images, more = len(self._whole), self._whole > 1
        more[self._some] = True
        begin = f"data.repeat_threshold={self.threshold:g}: "
        if self.samples == images:
            return f"{begin}no class is so rare that an image comes more often"
        most = int(self._whole.max(initial=0))
        most += bool((self._whole[self._some] == most).any())
        return (
            f"{begin}an epoch has {self.samples:,} samples of {images:,} images; "
            f"{int(more.sum()):,} with rare classes come more often, up to {most} times"
        )

    def counts(self, seed: int, epoch: int) -> NDArray[np.unsignedinteger]:
        """How often each image comes in an epoch, [images]; the sum is ``samples``."""
        counts = self._whole.copy()
        key = np.random.SeedSequence(seed, spawn_key=(_PHASE,))
        start = int(key.generate_state(1, np.uint64)[0])
        # In the middle of 65,536 cells: never on an end of the line, whatever cumsum rounds.
        phase = ((start + epoch * _GOLDEN) % _BITS // 2**48 + 0.5) / 2**16
        marked = np.searchsorted(self._ends, phase + np.arange(self._extra))
        np.add.at(counts, self._some[marked], 1)
        return counts
