"""The order of an epoch in which every step has one canvas: images are grouped by their shape.

Samples go through the order of ``order.py``; each waits in the bucket of its canvas until a global
batch of that canvas is full. A full batch takes its turn where its last member stood, so that what
is read stays close together. The samples that are left in incomplete batches at the end come last,
in their order, on the largest canvas, on which every image fits.

Invariants, beyond those of ``order.py``:

* an image is no smaller on its canvas than on the largest one;
* all ranks have the same canvas at a step; there are as many steps as without buckets;
* under the same global batch a resume gives exactly the rest of the undisturbed order. Under
  another one, or with other canvases, the samples that are left are grouped anew; ``Segment`` tells
  which those are;
* memory: 5 bytes a sample, about 20 while it is planned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotimm.streaming.order import EpochOrder
from autotimm.structures import World

Canvases = tuple[tuple[int, int], ...]
"""Heights and widths, the largest first; none where the order is not grouped."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of an epoch that was trained with one global batch and one set of canvases.

    Attributes:
        global_batch: samples that all ranks together took at a step.
        until: samples of the epoch that had been consumed when it ended.
        canvases: of the run; none where it did not group.
    """

    global_batch: int
    until: int
    canvases: Canvases = ()


def assign(image_sizes: NDArray[np.int64], canvases: Canvases) -> NDArray[np.uint8]:
    """The canvas of each image: the smallest on which it is as large as on the largest one.

    Args:
        image_sizes: [samples, 2] width and height.
        canvases: the largest, within which the others lie, first.

    Returns:
        [samples] positions in ``canvases``.
    """
    width, height = np.ascontiguousarray(image_sizes.T, np.float64)  # exact, and divides faster
    chosen = np.zeros(len(image_sizes), np.uint8)
    by_area = sorted(range(1, len(canvases)), key=lambda c: -canvases[c][0] * canvases[c][1])
    best = np.minimum(canvases[0][1] / width, canvases[0][0] / height) if canvases else None
    for c in by_area:
        chosen[np.minimum(canvases[c][1] / width, canvases[c][0] / height) == best] = c
    return chosen


@dataclass(frozen=True, slots=True)
class _Grouping:
    """Samples in the order of their buckets, and where in it the full batches lie."""

    members: NDArray[Any]  # [samples] what was grouped, bucket after bucket
    starts: NDArray[np.int64]  # [full batches] in members, in the order of their turns
    buckets: NDArray[np.uint8]  # [full batches]
    rest: NDArray[Any]  # what fills no batch, in the order in which it came
    global_batch: int

    def first(self, samples: int) -> NDArray[Any]:
        """What the first steps, of so many samples together, take."""
        starts = self.starts[: samples // self.global_batch, None]
        full = self.members[starts + np.arange(self.global_batch)].ravel()
        return np.concatenate([full, self.rest[: samples - len(full)]])


def _group(samples: NDArray[Any], buckets: NDArray[np.uint8], global_batch: int) -> _Grouping:
    """Cuts samples [n] in their order, each in the bucket [n], into batches of one bucket."""
    by_bucket = np.argsort(buckets, kind="stable")
    counts = np.bincount(buckets)
    ends = np.cumsum(counts)
    full = counts // global_batch
    starts, rest = [np.zeros(0, np.int64)], []
    for end, count, batches in zip(ends, counts, full, strict=True):
        starts.append(end - count + np.arange(batches) * global_batch)
        rest.append(by_bucket[end - count + batches * global_batch : end])
    start, bucket = np.concatenate(starts), np.repeat(np.arange(len(full), dtype=np.uint8), full)
    turn = np.argsort(by_bucket[start + global_batch - 1])
    return _Grouping(
        members=samples[by_bucket],
        starts=start[turn],
        buckets=bucket[turn],
        rest=samples[np.sort(np.concatenate(rest))],
        global_batch=global_batch,
    )


class BucketPlan:
    """As ``order.Plan``, for batches of one canvas.

    Args:
        order: of the epoch.
        world: this rank and the number of ranks.
        batch_size: of one rank.
        consumed: samples of this epoch that all ranks together have had before.
        canvases: of this run.
        buckets: [samples] what ``assign`` says, for these canvases and for those in ``history``.
        history: the parts of this epoch before the one that goes on or begins.
    """

    def __init__(
        self,
        order: EpochOrder,
        world: World,
        batch_size: int,
        consumed: int,
        canvases: Canvases,
        buckets: Mapping[Canvases, NDArray[np.uint8]],
        history: Sequence[Segment] = (),
    ) -> None:
        self._order, self._world, self._batch_size = order, world, batch_size
        self._canvases = canvases
        kind = np.dtype(np.uint32 if order.samples < 2**32 else np.int64)
        left: NDArray[Any] = np.arange(order.samples, dtype=kind)
        start = 0
        for part in history:
            grouping = _group(left, order.gather(buckets[part.canvases])[left], part.global_batch)
            had = np.zeros(order.samples, bool)
            had[grouping.first(part.until - start)] = True
            left, start = left[~had[left]], part.until
        self._buckets = order.gather(buckets[canvases])
        mine = self._buckets[left] if start else self._buckets
        self._grouping = _group(left, mine, world.size * batch_size)
        self._skip = (consumed - start) // (world.size * batch_size)
        self.steps = -(-len(left) // (world.size * batch_size)) - self._skip

    def positions(self, step: int) -> NDArray[np.int64]:
        """Positions [batch_size] in the epoch's order of this rank's batch ``step``.

        Those of the last batch may lie beyond the last sample: ``locate`` wraps them.
        """
        turn, first = step + self._skip, self._world.rank * self._batch_size
        every = self._grouping
        if turn < len(every.starts):
            first += int(every.starts[turn])
            return every.members[first : first + self._batch_size].astype(np.int64)
        first += (turn - len(every.starts)) * every.global_batch
        last = every.rest[first : first + self._batch_size].astype(np.int64)
        beyond = np.arange(max(first, len(every.rest)), first + self._batch_size)
        return np.concatenate([last, beyond - len(every.rest) + self._order.samples])

    def canvas(self, step: int) -> tuple[int, int] | None:
        """Height and width of the images of a step."""
        return self._canvases[self._bucket(step)] if self._canvases else None

    def window(self, step: int) -> int:
        """The window of the order that has been reached at a step, by all ranks together."""
        turn, every = step + self._skip, self._grouping
        if turn >= len(every.starts):
            return self._order.windows - 1
        return self._order.window_of(
            int(every.members[every.starts[turn] + every.global_batch - 1])
        )

    def substitutes(self, position: int, step: int) -> Iterable[int]:
        """Positions of the samples that may take the place of one of a step, the best first.

        First those of its canvas, then any.
        """
        bucket, samples = self._bucket(step), self._order.samples

        def suiting(suits: bool) -> Iterator[int]:
            for other in range(position + 1, position + samples):
                if (bucket in (0, self._buckets[other % samples])) == suits:
                    yield other

        yield from suiting(True)
        yield from suiting(False)

    def _bucket(self, step: int) -> int:
        turn = step + self._skip
        return int(self._grouping.buckets[turn]) if turn < len(self._grouping.starts) else 0
