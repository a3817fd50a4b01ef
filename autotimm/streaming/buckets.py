"""Aspect-ratio buckets: the order of an epoch in which all images of a step share a canvas.

Samples come in the order of ``order.py``, and each waits in the bucket of its canvas until a global
batch of that canvas is full. A full batch takes the place of its last member in the order, so that
samples that are read together stay close together. Samples in incomplete batches come last, in
their order, on the largest canvas, which fits every image.

Invariants, in addition to those of ``order.py``:

* an image is at least as large on its canvas as on the largest one;
* all ranks use the same canvas at a step, and an epoch has as many steps as without buckets;
* a resume with the same global batch gives exactly the rest of the uninterrupted order; with
  another global batch or other canvases, the plan regroups the samples that are left, which it
  finds from the earlier ``Segment``s;
* memory is 5 bytes a sample, and about 20 during planning.
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
"""Heights and widths, the largest first; empty without grouping."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of an epoch that was trained with one global batch and one set of canvases.

    Attributes:
        global_batch: samples of all ranks together at a step.
        until: samples of the epoch consumed by the end of the segment.
        canvases: the run's canvases; empty if it did not group.
    """

    global_batch: int
    until: int
    canvases: Canvases = ()


def assign(image_sizes: NDArray[np.int64], canvases: Canvases) -> NDArray[np.uint8]:
    """Assigns to each image the smallest canvas on which it is as large as on the largest one.

    Args:
        image_sizes: [samples, 2] width and height.
        canvases: the largest first; the others fit inside it.

    Returns:
        [samples] positions in ``canvases``.
    """
    width, height = np.ascontiguousarray(image_sizes.T, np.float64)  # exact; divides fastest
    chosen = np.zeros(len(image_sizes), np.uint8)
    by_area = sorted(range(1, len(canvases)), key=lambda c: -canvases[c][0] * canvases[c][1])
    best = np.minimum(canvases[0][1] / width, canvases[0][0] / height) if canvases else None
    for c in by_area:
        chosen[np.minimum(canvases[c][1] / width, canvases[c][0] / height) == best] = c
    return chosen


@dataclass(frozen=True, slots=True)
class _Grouping:
    """Samples sorted by bucket, and the full batches among them."""

    members: NDArray[Any]  # [samples], bucket after bucket
    starts: NDArray[np.int64]  # [full batches] where each begins in members, in training order
    buckets: NDArray[np.uint8]  # [full batches] the bucket of each
    rest: NDArray[Any]  # the samples that fill no batch, in their original order
    global_batch: int

    def first(self, samples: int) -> NDArray[Any]:
        """The first ``samples`` samples in training order."""
        starts = self.starts[: samples // self.global_batch, None]
        full = self.members[starts + np.arange(self.global_batch)].ravel()
        return np.concatenate([full, self.rest[: samples - len(full)]])


def _group(samples: NDArray[Any], buckets: NDArray[np.uint8], global_batch: int) -> _Grouping:
    """Groups samples [n] with buckets [n] into batches of one bucket, keeping their order."""
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
    """The counterpart of ``order.Plan`` for batches of one canvas each.

    Args:
        order: the epoch's order.
        world: this rank and the number of ranks.
        batch_size: samples of one rank at a step.
        consumed: samples of this epoch that all ranks together have consumed before.
        canvases: this run's canvases.
        buckets: canvases -> [samples] as ``assign`` returns them; for this run's canvases and for
            those of every segment in ``history``.
        history: the earlier segments of this epoch.
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
        """The positions [batch_size], in the epoch's order, of this rank's batch ``step``.

        Those of the last batch may lie beyond the last sample; ``locate`` wraps them around.
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
        """The window that contains the last sample of the global batch ``step``."""
        turn, every = step + self._skip, self._grouping
        if turn >= len(every.starts):
            return self._order.windows - 1
        return self._order.window_of(
            int(every.members[every.starts[turn] + every.global_batch - 1])
        )

    def substitutes(self, position: int, step: int) -> Iterable[int]:
        """Positions of samples that may replace the one at ``position``: same canvas first."""
        bucket, samples = self._bucket(step), self._order.samples

        def candidates(fitting: bool) -> Iterator[int]:
            for other in range(position + 1, position + samples):
                if (bucket in (0, self._buckets[other % samples])) == fitting:
                    yield other

        yield from candidates(True)
        yield from candidates(False)

    def _bucket(self, step: int) -> int:
        turn = step + self._skip
        return int(self._grouping.buckets[turn]) if turn < len(self._grouping.starts) else 0
