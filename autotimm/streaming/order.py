"""The order of samples: pure functions of shard sizes, seed, epoch, world and progress.

An epoch is one global order of all samples: each image once, or as often as ``repeats.py`` says. A
shuffled epoch permutes the shards by the seed, cuts them into windows of ``WINDOW`` shards, and
permutes the samples within each window; an unshuffled one has the natural order. A global batch is
``world.size * batch_size`` consecutive positions of that order, and each rank takes its contiguous
slice.

Invariants:

* every image comes exactly once an epoch, or as often as its count says, except that an incomplete
  last global batch is filled up from the epoch's beginning;
* all ranks get the same number of batches, even if there are more ranks than samples;
* the global batches depend on ``world.size * batch_size`` only, neither on the two factors nor on
  the number of workers;
* after ``consumed`` samples, a run with any world size can continue with exactly the rest;
* memory holds a few numbers a shard and one window of samples, however many samples there are.

``streaming/buckets.py`` regroups this order by the shape of the images.

The permutations are argsorts of Philox's raw stream, which NumPy guarantees not to change (NEP 19),
unlike ``Generator.permutation``; so a run can resume under another version of NumPy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from autotimm.structures import World

_T = TypeVar("_T", bound=np.generic)

WINDOW = 32
"""Shards shuffled together. 32 mix better than webdataset's shuffle buffer of 10,000, 16 worse."""

_SHARDS, _WINDOW = 0, 1  # the purpose in a permutation's key, so that no two are the same
_PERMUTATION, _PARTNER, _SIZE = 1, 3, 4  # spawn keys that keep these streams apart


def steps_per_epoch(samples: int, world_size: int, batch_size: int, consumed: int = 0) -> int:
    """The number of batches that every rank gets from the rest of an epoch."""
    left = max(samples - consumed, 0)
    return -(-left // (world_size * batch_size))


def batch_positions(
    step: int, world: World, batch_size: int, consumed: int = 0
) -> NDArray[np.int64]:
    """The positions, in the epoch's order, of this rank's batch ``step``.

    Args:
        step: the number of the batch, from 0 for the first one after ``consumed``.
        world: this rank and the number of ranks.
        batch_size: samples of one rank at a step.
        consumed: samples of this epoch that all ranks together have consumed before.

    Returns:
        [batch_size] positions. Those of the last batch may lie beyond the last sample; ``locate``
        wraps them around.
    """
    start = consumed + (step * world.size + world.rank) * batch_size
    return np.arange(start, start + batch_size, dtype=np.int64)


class Plan:
    """One rank's batches of the rest of an epoch.

    Args:
        order: the epoch's order.
        world: this rank and the number of ranks.
        batch_size: samples of one rank at a step.
        consumed: samples of this epoch that all ranks together have consumed before.
    """

    def __init__(self, order: EpochOrder, world: World, batch_size: int, consumed: int = 0) -> None:
        self._order, self._world, self._batch_size = order, world, batch_size
        self._consumed = consumed
        self.steps = steps_per_epoch(order.samples, world.size, batch_size, consumed)

    def positions(self, step: int) -> NDArray[np.int64]:
        """The positions [batch_size] of batch ``step``; see ``batch_positions``."""
        return batch_positions(step, self._world, self._batch_size, self._consumed)

    def canvas(self, step: int) -> tuple[int, int] | None:
        """Height and width of the images of a step; None for the loader's default."""
        return None

    def window(self, step: int) -> int:
        """The window that contains the first sample of this rank's batch ``step``."""
        return self._order.window_of(int(self.positions(step)[0]))

    def substitutes(self, position: int, step: int) -> Iterable[int]:
        """Positions of samples that may replace the one at ``position``, the best first."""
        return range(position + 1, position + self._order.samples)


class EpochOrder:
    """Looks up samples by their position in the order of one epoch.

    The object caches the last window, so that sequential look-ups are fast; results depend only on
    the arguments.

    Args:
        shard_sizes: [shards] samples of each shard; a shard may be empty.
        seed: of the run, not negative.
        epoch: 0, 1, ...: each has another order.
        shuffle: False for the natural order.
        window: the number of shards that are shuffled together.
        repeats: [images] how often each comes, shard after shard; None for once. ``samples`` is
            then their sum, and an image's repetitions lie in the window of its shard.

    Raises:
        ValueError: there are no samples.
    """

    def __init__(
        self,
        shard_sizes: NDArray[np.int64],
        seed: int,
        epoch: int,
        shuffle: bool,
        window: int = WINDOW,
        repeats: NDArray[np.unsignedinteger] | None = None,
    ) -> None:
        sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._firsts = np.cumsum(sizes) - sizes  # the number of each shard's first image
        self._repeats = repeats
        counts = sizes if repeats is None else _sums(repeats, self._firsts, sizes)
        self.samples = int(counts.sum())
        if not self.samples:
            raise ValueError("there is no sample to order")
        self._sizes = sizes
        self._key = (seed, epoch)
        self._window_size = window
        self._shuffle = shuffle
        self._shards = _permutation(len(sizes), seed, epoch, _SHARDS) if shuffle else None
        per_window = np.add.reduceat(
            counts if self._shards is None else counts[self._shards],
            np.arange(0, len(sizes), window),
        )
        self._starts = np.concatenate([[0], np.cumsum(per_window)])  # [windows + 1]
        self._last: tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]
        self._last = (-1, sizes, sizes, None)

    @property
    def windows(self) -> int:
        """The number of windows."""
        return len(self._starts) - 1

    def window_of(self, position: int) -> int:
        """The window that contains a position."""
        return int(np.searchsorted(self._starts, position % self.samples, side="right")) - 1

    def window_shards(self, window: int) -> NDArray[np.int64]:
        """The shards of a window; empty if there is no such window."""
        span = slice(window * self._window_size, (window + 1) * self._window_size)
        if self._shards is not None:
            return self._shards[span]
        return np.arange(len(self._sizes), dtype=np.int64)[span]

    def gather(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Sorts values [images], given shard after shard, into the epoch's order [samples]."""
        out = np.empty(self.samples, values.dtype)
        for k in range(self.windows):
            shards, _, order = self._window(k)
            here = self._of_shards(values, shards)
            out[self._starts[k] : self._starts[k + 1]] = here if order is None else here[order]
        return out

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Finds the samples at these positions.

        Args:
            positions: [n], not negative; those beyond the last sample wrap around to the first.

        Returns:
            The shard [n] and the index within the shard [n] of each.
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
        """The shards of window k, the cumulative sums of their sizes, and the order of its samples:
        numbers of images, counted from the window's first; None for the natural order."""
        if self._last[0] != k:
            shards = self.window_shards(k)
            ends = np.cumsum(self._sizes[shards])
            order = None
            if self._repeats is not None:
                images = np.arange(ends[-1], dtype=np.int64)
                order = np.repeat(images, self._of_shards(self._repeats, shards))
            if self._shuffle:
                samples = int(self._starts[k + 1] - self._starts[k])
                turn = _permutation(samples, *self._key, _WINDOW, k)
                order = turn if order is None else order[turn]
            self._last = (k, shards, ends, order)
        return self._last[1:]

    def _of_shards(self, values: NDArray[_T], shards: NDArray[np.int64]) -> NDArray[_T]:
        """Those of the values [images] that belong to some shards, in their order."""
        spans = zip(self._firsts[shards].tolist(), self._sizes[shards].tolist(), strict=True)
        return np.concatenate([values[a : a + n] for a, n in spans])


def _sums(
    values: NDArray[np.unsignedinteger], firsts: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The sum of the values of each shard; 0 for an empty one."""
    sums = np.zeros(len(sizes), np.int64)
    some = sizes > 0
    sums[some] = np.add.reduceat(values, firsts[some], dtype=np.int64)
    return sums


def sample_rng(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The random generator of the sample at a position of an epoch.

    It depends on neither the rank nor the worker that reads the sample.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, position))))


def drawn_size(seed: int, epoch: int, consumed: int, sizes: int) -> int:
    """Draws the size of the images of a step: an index from 0 to ``sizes - 1``, uniformly.

    Args:
        seed: of the run.
        epoch: 0, 1, ...
        consumed: samples of the epoch that all ranks together have consumed before the step; so the
            result is the same on every rank, and after a resume.
        sizes: the number of sizes.
    """
    key = np.random.SeedSequence((seed, epoch, consumed), spawn_key=(_SIZE,))
    return int(key.generate_state(1, np.uint64)[0]) * sizes >> 64


def partner(seed: int, epoch: int, position: int, share: float) -> int | None:
    """Draws whether a sample gets a second one, as copy-paste needs it, and returns its position.

    The second sample is the next one of the order, which is about to be read anyway.

    Args:
        seed: of the run.
        epoch: 0, 1, ...
        position: of the sample in the epoch's order.
        share: the probability that a sample gets a second one.

    Returns:
        The position of the second sample, or None.
    """
    if not share:
        return None
    # A stream of its own, so that the augmentation is the same with and without a second sample.
    key = np.random.SeedSequence((seed, epoch, position), spawn_key=(_PARTNER,))
    chance = int(key.generate_state(1, np.uint64)[0]) / 2**64
    return position + 1 if chance < share else None


def _permutation(n: int, seed: int, epoch: int, *purpose: int) -> NDArray[np.int64]:
    """A seeded permutation of ``range(n)``."""
    # The spawn key separates this stream from sample_rng's.
    key = np.random.SeedSequence((seed, epoch, *purpose), spawn_key=(_PERMUTATION,))
    stream = np.random.Philox(key)
    keys = stream.random_raw(n)
    order = np.argsort(keys)  # several times faster than a stable sort, and equal unless keys tie
    drawn = keys[order]
    return np.argsort(keys, kind="stable") if (drawn[1:] == drawn[:-1]).any() else order
