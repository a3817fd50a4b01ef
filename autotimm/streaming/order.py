"""Which sample is read when: pure functions of shard sizes, seed, epoch, world and progress.

An epoch is one global order of all samples. Shuffled, it is a seeded permutation of the shards, cut
into windows of ``WINDOW`` shards, and a seeded permutation of the samples within each window;
unshuffled, it is the natural order. A global batch is ``world.size * batch_size`` consecutive
positions of that order, and each rank takes its contiguous slice.

Invariants:

* every sample comes exactly once an epoch; the last global batch alone, where it is uneven, goes on
  at the epoch's beginning;
* all ranks get the same number of batches, also where the world is larger than the data set;
* the global batches depend on ``world.size * batch_size`` alone, not on how that is cut, nor on the
  number of workers;
* after ``consumed`` samples any world can go on, with exactly the samples that are left;
* memory holds a few numbers a shard and one window of samples, however many samples there are.

``streaming/buckets.py`` regroups this order by the shape of the images.

The permutations are argsorts of Philox's raw stream, which NumPy guarantees to stay as it is
(NEP 19), unlike ``Generator.permutation``: a run can be resumed under another NumPy.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from autotimm.structures import World

WINDOW = 32
"""Shards that are mixed with each other: 32 mix better than a shuffle buffer does, 16 worse."""

_SHARDS, _WINDOW = 0, 1  # what a permutation is for, so that no two share one
_PERMUTATION, _PARTNER, _SIZE = 1, 3, 4  # likewise, what a stream is for beside sample_rng


def steps_per_epoch(samples: int, world_size: int, batch_size: int, consumed: int = 0) -> int:
    """Batches that every rank gets from the ``samples - consumed`` samples left of an epoch."""
    left = max(samples - consumed, 0)
    return -(-left // (world_size * batch_size))


def batch_positions(
    step: int, world: World, batch_size: int, consumed: int = 0
) -> NDArray[np.int64]:
    """Positions [batch_size] in the epoch's order of this rank's batch ``step``.

    Args:
        step: counts from the first batch after ``consumed``.
        world: this rank and the number of ranks.
        batch_size: of one rank.
        consumed: samples of this epoch that all ranks together have had before.

    Returns:
        Positions. Those of the last batch may lie beyond the last sample: ``locate`` wraps them.
    """
    start = consumed + (step * world.size + world.rank) * batch_size
    return np.arange(start, start + batch_size, dtype=np.int64)


class Plan:
    """The batches of one rank of what is left of an epoch.

    Args:
        order: of the epoch.
        world: this rank and the number of ranks.
        batch_size: of one rank.
        consumed: samples of this epoch that all ranks together have had before.
    """

    def __init__(self, order: EpochOrder, world: World, batch_size: int, consumed: int = 0) -> None:
        self._order, self._world, self._batch_size = order, world, batch_size
        self._consumed = consumed
        self.steps = steps_per_epoch(order.samples, world.size, batch_size, consumed)

    def positions(self, step: int) -> NDArray[np.int64]:
        """Positions [batch_size] in the epoch's order of batch ``step``; see batch_positions."""
        return batch_positions(step, self._world, self._batch_size, self._consumed)

    def canvas(self, step: int) -> tuple[int, int] | None:
        """Height and width of the images of a step; None leaves it to who loads them."""
        return None

    def window(self, step: int) -> int:
        """The window of the order that this rank has reached at a step."""
        return self._order.window_of(int(self.positions(step)[0]))

    def substitutes(self, position: int, step: int) -> Iterable[int]:
        """Positions of the samples that may take the place of one of a step, the best first."""
        return range(position + 1, position + self._order.samples)


class EpochOrder:
    """The order of one epoch, looked up by position.

    It remembers the window that was looked at last, so that reading on costs nothing; what it
    answers depends on its arguments alone.

    Args:
        shard_sizes: [shards] samples of each shard; a shard may be empty.
        seed: of the run, not negative.
        epoch: 0, 1, ...: each has another order.
        shuffle: False for the natural order.
        window: shards that are mixed with each other.

    Raises:
        ValueError: there is no sample.
    """

    def __init__(
        self,
        shard_sizes: NDArray[np.int64],
        seed: int,
        epoch: int,
        shuffle: bool,
        window: int = WINDOW,
    ) -> None:
        sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.samples = int(sizes.sum())
        if not self.samples:
            raise ValueError("there is no sample to order")
        self._sizes = sizes
        self._key = (seed, epoch)
        self._window_size = window
        self._shuffle = shuffle
        self._shards = _permutation(len(sizes), seed, epoch, _SHARDS) if shuffle else None
        per_window = np.add.reduceat(
            sizes if self._shards is None else sizes[self._shards],
            np.arange(0, len(sizes), window),
        )
        self._starts = np.concatenate([[0], np.cumsum(per_window)])  # [windows + 1]
        self._last: tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]
        self._last = (-1, sizes, sizes, None)

    @property
    def windows(self) -> int:
        """Number of windows."""
        return len(self._starts) - 1

    def window_of(self, position: int) -> int:
        """The window in which a position lies."""
        return int(np.searchsorted(self._starts, position % self.samples, side="right")) - 1

    def window_shards(self, window: int) -> NDArray[np.int64]:
        """The shards of a window, none if there is no such window."""
        span = slice(window * self._window_size, (window + 1) * self._window_size)
        if self._shards is not None:
            return self._shards[span]
        return np.arange(len(self._sizes), dtype=np.int64)[span]

    def gather(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Brings one value a sample, given shard after shard, into the epoch's order."""
        firsts = np.cumsum(self._sizes) - self._sizes
        out = np.empty_like(values)
        for k in range(self.windows):
            shards, _, order = self._window(k)
            spans = zip(firsts[shards].tolist(), self._sizes[shards].tolist(), strict=True)
            here = np.concatenate([values[a : a + n] for a, n in spans])
            out[self._starts[k] : self._starts[k + 1]] = here if order is None else here[order]
        return out

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the samples at these positions lie.

        Args:
            positions: [n], not negative; what lies beyond the last sample goes on at the first.

        Returns:
            shard [n] and index within the shard [n].
        """
        wrapped = np.asarray(positions, dtype=np.int64) % self.samples
        shard, index = np.empty_like(wrapped), np.empty_like(wrapped)
        window = np.searchsorted(self._starts, wrapped, side="right") - 1
        for k in np.unique(window):
            here = window == k
            shards, ends, order = self._window(int(k))
            flat = wrapped[here] - self._starts[k]
            if order is not None:
                flat = order[flat]
            row = np.searchsorted(ends, flat, side="right")
            shard[here] = shards[row]
            index[here] = flat - (ends[row] - self._sizes[shards[row]])
        return shard, index

    def _window(
        self, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]:
        """Shards of window k, where the samples of each end, and the samples' permutation."""
        if self._last[0] != k:
            shards = self.window_shards(k)
            ends = np.cumsum(self._sizes[shards])
            order = _permutation(int(ends[-1]), *self._key, _WINDOW, k) if self._shuffle else None
            self._last = (k, shards, ends, order)
        return self._last[1:]


def sample_rng(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The random numbers of one sample, which follow its position in the epoch.

    Neither the rank nor the worker that happens to read a sample changes how it is augmented.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, position))))


def drawn_size(seed: int, epoch: int, consumed: int, sizes: int) -> int:
    """Which of so many sizes the images of a step have, 0 to ``sizes - 1``; each is as likely.

    Args:
        seed: of the run.
        epoch: 0, 1, ...
        consumed: samples of the epoch that all ranks together have had before the step, so that it
            is the same on all of them, and after a resume.
        sizes: how many there are.
    """
    key = np.random.SeedSequence((seed, epoch, consumed), spawn_key=(_SIZE,))
    return int(key.generate_state(1, np.uint64)[0]) * sizes >> 64


def partner(seed: int, epoch: int, position: int, share: float) -> int | None:
    """The position of the second sample that goes with the one at a position, if it has one.

    It is the next one of the order, which is read soon in any case.

    Args:
        seed: of the run.
        epoch: 0, 1, ...
        position: in the epoch's order.
        share: of the samples that have a second one.
    """
    if not share:
        return None
    # Apart from sample_rng, so that samples are varied as without it.
    key = np.random.SeedSequence((seed, epoch, position), spawn_key=(_PARTNER,))
    chance = int(key.generate_state(1, np.uint64)[0]) / 2**64
    return position + 1 if chance < share else None


def _permutation(n: int, seed: int, epoch: int, *purpose: int) -> NDArray[np.int64]:
    """A seeded permutation of ``range(n)``."""
    # The spawn key keeps these streams apart from sample_rng's.
    key = np.random.SeedSequence((seed, epoch, *purpose), spawn_key=(_PERMUTATION,))
    stream = np.random.Philox(key)
    keys = stream.random_raw(n)
    order = np.argsort(keys)  # several times as fast as a stable sort, which differs in ties alone
    drawn = keys[order]
    return np.argsort(keys, kind="stable") if (drawn[1:] == drawn[:-1]).any() else order
