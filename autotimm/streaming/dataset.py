"""One rank's batches of an epoch, made in the planned order by any number of workers.

Worker ``w`` of ``n`` makes batches ``w``, ``w + n``, ... of its rank, so that the DataLoader, which
asks its workers in turn, restores the order. Invariants: batches depend on neither the number of
workers nor, as a global batch, on how many ranks share it; nothing is read for a batch that was
consumed before a resume.

A sample that cannot be used (``DataError``) is skipped: the next one of the order that can be used
takes its place, so that the number of batches stays what it is on every rank. What was skipped
travels, with the batch in which it had its place, to the loader, which counts it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from autotimm.images.decode import DataError
from autotimm.streaming.buckets import BucketPlan, Canvases, Segment, assign
from autotimm.streaming.order import EpochOrder, Plan, drawn_size, partner, sample_rng
from autotimm.streaming.store import Source
from autotimm.structures import InputError, Record, World

Load = Callable[..., Any]
"""(image file's bytes, record, randomness) -> sample; of a stream with canvases or sizes, that of
the step comes fourth, as height and width; a second sample, where it has one, as ``other``, its
bytes and record."""
Collate = Callable[[list[Any], list[bool]], Any]
"""(samples, for each whether it is padding) -> batch."""
Skipped = dict[tuple[int, int], str]
"""(shard, index within the shard) -> what is wrong with the sample, by name."""
_AHEAD = 2  # samples for each thread that are read before their turn


@dataclass(frozen=True, slots=True)
class Failure:
    """An InputError on its way from a worker, without the traceback that DataLoader would add."""

    message: str


class SampleStream(IterableDataset):
    """One rank's batches of one epoch after another.

    Args:
        source: of the samples.
        load: makes a sample of an image's bytes and its record; raises DataError if it cannot.
        collate: makes a batch of samples.
        world: this rank and the number of ranks.
        batch_size: of one rank.
        seed: of order and augmentation.
        shuffle: False for the natural order.
        pad: flag repeats as padding (evaluation), rather than use them again: what goes beyond the
            end in the last batch, and what takes the place of a sample that cannot be used.
        canvases: heights and widths, of which each step has one, the largest first; none leaves
            the size to ``load``.
        sizes: heights and widths, of which each step draws one, whatever its images' shapes; not
            together with ``canvases``.
        max_corrupt: share of a rank's samples of an epoch that may be skipped because they cannot
            be used.
        paired: share of the samples for which ``load`` gets a second one.
        threads: that make the samples of a batch where no workers do; more than one needs a
            ``load`` that can be called by several.

    Raises:
        InputError: the source has no images.
    """

    def __init__(
        self,
        source: Source,
        load: Load,
        collate: Collate,
        *,
        world: World,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        pad: bool = False,
        canvases: Canvases = (),
        sizes: Canvases = (),
        max_corrupt: float = 0.01,
        paired: float = 0.0,
        threads: int = 1,
    ) -> None:
        super().__init__()
        self.source, self.load, self.collate = source, load, collate
        self.world, self.batch_size, self.seed = world, batch_size, seed
        self.shuffle, self.pad = shuffle, pad
        self.canvases, self.sizes = canvases, sizes
        self.samples = int(source.shard_sizes.sum())
        if not self.samples:
            raise InputError(f"{source.where(0)}: there are no images in this split")
        # Epoch and samples consumed before its first batch, seen by workers that live on.
        self.progress = torch.zeros(2, dtype=torch.int64).share_memory_()
        self.max_corrupt, self.paired, self.threads = max_corrupt, paired, threads
        self.history: tuple[int, list[Segment]] = (0, [])  # of which epoch, its earlier parts
        self._buckets: dict[Canvases, NDArray[np.uint8]] = {}
        if canvases:
            self._know(canvases)

    def resume(self, epoch: int, history: list[Segment]) -> None:
        """Sets the parts of an epoch that came before the one that goes on; ends no worker."""
        self.history = (epoch, history)
        for part in history:
            self._know(part.canvases)
        if history:
            self._know(self.canvases)

    def _know(self, canvases: Canvases) -> None:
        if canvases not in self._buckets:
            self._buckets[canvases] = (
                assign(self.source.image_sizes(), canvases)
                if canvases
                else np.zeros(self.samples, np.uint8)
            )

    def __iter__(self) -> Iterator[Any]:
        epoch, consumed = self.progress.tolist()
        info = get_worker_info()
        if info is None:
            return self._batches(epoch, consumed, 0, 1, self.threads)
        cv2.setNumThreads(0)  # the workers are the threads
        return self._batches(epoch, consumed, info.id, info.num_workers, 1)

    def _plan(self, order: EpochOrder, epoch: int, consumed: int) -> Plan | BucketPlan:
        history = self.history[1] if epoch == self.history[0] else []
        given = (order, self.world, self.batch_size, consumed)
        if not self.canvases and not history:
            return Plan(*given)
        return BucketPlan(*given, self.canvases, self._buckets, history)

    def _batches(
        self, epoch: int, consumed: int, worker: int, workers: int, threads: int = 1
    ) -> Iterator[Any]:
        """Each batch with what was skipped for it; None for one that could not be filled."""
        order = EpochOrder(self.source.shard_sizes, self.seed, epoch, self.shuffle)
        plan = self._plan(order, epoch, consumed)
        window, damaged = -1, Skipped()
        with contextlib.ExitStack() as stack:
            pool = None
            if threads > 1:  # they end with the epoch: a process that is forked should have none
                pool = stack.enter_context(ThreadPoolExecutor(threads))
            for step in range(worker, plan.steps, workers):
                if (now := plan.window(step)) != window:
                    window = now
                    ahead = order.window_shards(now), order.window_shards(now + 1)
                    self.source.prefetch(np.concatenate(ahead).tolist())
                canvas = plan.canvas(step)
                if self.sizes:
                    before = consumed + step * self.world.size * self.batch_size
                    canvas = self.sizes[drawn_size(self.seed, epoch, before, len(self.sizes))]
                try:
                    batch, skipped = self._batch(plan, order, step, epoch, canvas, damaged, pool)
                except InputError as error:
                    yield Failure(str(error))
                    return
                yield batch, [(*place, text) for place, text in skipped.items()]
                if batch is None:
                    return

    def _batch(
        self,
        plan: Plan | BucketPlan,
        order: EpochOrder,
        step: int,
        epoch: int,
        canvas: tuple[int, int] | None,
        damaged: Skipped,
        pool: ThreadPoolExecutor | None,
    ) -> tuple[Any | None, Skipped]:
        """A batch, and what was skipped of its own places; ``damaged`` also has what was tried in
        their stead, which is another batch's to tell. No batch, and all of it, if it is too much.
        """
        positions = plan.positions(step)
        samples, padding, skipped = [], [], Skipped()
        firsts = [*zip(positions.tolist(), _places(order, positions), strict=True)]
        make = partial(self._make, epoch=epoch, canvas=canvas)
        read = partial(self._read, order=order, epoch=epoch)
        for position, first, begun in self._begun(firsts, read, make, damaged, pool):
            others = (p for n in plan.substitutes(position, step) for p in _places(order, n))
            for place in chain([first], others):
                if place not in damaged:
                    try:
                        if place == first and begun is not None:
                            samples.append(begun.result())
                        else:
                            alone = place != first  # whose second one may be this very sample
                            found = read(place, None if alone else position)
                            samples.append(make(*found, position=position))
                        break
                    except DataError as error:
                        damaged[place] = str(error)
                if len(damaged) > self.max_corrupt * self.samples:
                    return None, damaged
                if place == first and position < self.samples:
                    skipped[place] = damaged[place]
            else:
                return None, damaged
            padding.append(self.pad and (place != first or position >= self.samples))
        return self.collate(samples, padding), skipped

    def _begun(
        self,
        firsts: Iterable[tuple[int, tuple[int, int]]],
        read: Callable[..., Any],
        make: Callable[..., Any],
        damaged: Skipped,
        pool: ThreadPoolExecutor | None,
    ) -> Iterator[tuple[int, tuple[int, int], Future[Any] | None]]:
        """Each position and place with its sample, which threads make before its turn; None where
        there are no threads, or where it is known that the sample cannot be used.

        Read is here, as sources are not made for two threads: a download that fails or that is
        interrupted ends this at once, rather than when all that wait for it have tried it too.
        """
        if pool is None:
            yield from ((position, place, None) for position, place in firsts)
            return
        begun: deque[tuple[int, tuple[int, int], Future[Any] | None]] = deque()
        for position, place in firsts:
            sample: Future[Any] | None = None
            if place not in damaged:
                try:
                    sample = pool.submit(make, *read(place, position), position=position)
                except DataError as error:
                    sample = Future()
                    sample.set_exception(error)
            begun.append((position, place, sample))
            if len(begun) > _AHEAD * self.threads:
                yield begun.popleft()
        yield from begun

    def _read(
        self, place: tuple[int, int], position: int | None, *, order: EpochOrder, epoch: int
    ) -> tuple[bytes | memoryview, Record, int, tuple[bytes | memoryview, Record] | None]:
        """What is at a place, its shard, and the second sample of the position, if there is one."""
        found, other = self.source.read(*place), None
        if position is None:
            return *found, place[0], None
        if (second := partner(self.seed, epoch, position, self.paired)) is not None:
            # One that cannot be used is told of where its own turn is.
            with contextlib.suppress(DataError):
                other = self.source.read(*next(_places(order, second)))
        return *found, place[0], other

    def _make(
        self,
        data: bytes | memoryview,
        record: Record,
        shard: int,
        other: tuple[bytes | memoryview, Record] | None,
        *,
        epoch: int,
        position: int,
        canvas: tuple[int, int] | None,
    ) -> Any:
        given: list[Any] = [data, record, sample_rng(self.seed, epoch, position)]
        if canvas is not None:
            given.append(canvas)
        try:
            return self.load(*given) if other is None else self.load(*given, other=other)
        except InputError as error:
            raise type(error)(f"{self._name(record, shard)}: {error}") from error
        except Exception as error:
            error.add_note(f"while sample {self._name(record, shard)} was made")
            raise

    def _name(self, record: Record, shard: int) -> str:
        return f"{record['file_name']} (in {self.source.where(shard)})"


def _places(order: EpochOrder, positions: NDArray[np.int64] | int) -> Iterator[tuple[int, int]]:
    """Shard and index of each position."""
    shard, index = order.locate(np.atleast_1d(positions))
    return zip(shard.tolist(), index.tolist(), strict=True)
