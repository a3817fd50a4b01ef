"""One rank's batches of an epoch, made in the planned order by any number of workers.

Worker ``w`` of ``n`` makes batches ``w``, ``w + n``, ... of its rank; the DataLoader asks its
workers in turn, which restores the order. Invariants: a global batch depends neither on the number
of workers nor on the number of ranks that share it; after a resume, no worker reads anything for
batches that were consumed before.

If a sample cannot be used (``DataError``), the stream skips it and takes the next usable one of the
order instead, so that every rank keeps its number of batches. The stream sends each skipped sample
to the loader, which counts it, together with the batch that should have contained it.
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
from torch.utils.data import IterableDataset, get_worker_info

from autotimm.images.decode import DataError
from autotimm.images.turns import in_turn
from autotimm.streaming.buckets import BucketPlan, Canvases, Segment
from autotimm.streaming.epochs import Epochs
from autotimm.streaming.order import EpochOrder, Plan, drawn_size, partner, sample_rng
from autotimm.streaming.repeats import Repeats
from autotimm.streaming.store import Source
from autotimm.streaming.upcoming import places, upcoming
from autotimm.structures import InputError, Record, World

Load = Callable[..., Any]
"""(image file's bytes, record, random generator) -> sample.

A stream with ``canvases`` or ``sizes`` passes the step's height and width as a fourth argument, and
a paired stream the second sample's bytes and record as ``other``."""
Collate = Callable[[list[Any], list[bool]], Any]
"""(samples, whether each is padding) -> batch."""
Skipped = dict[tuple[int, int], str]
"""(shard, index within the shard) -> a line that names the sample and says what is wrong."""
_AHEAD = 2  # samples that are read ahead for each thread


@dataclass(frozen=True, slots=True)
class Failure:
    """An InputError of a worker, sent as a value because DataLoader adds a traceback to errors."""

    message: str


class SampleStream(IterableDataset):
    """One rank's batches of one epoch after another.

    Args:
        source: reads the samples.
        load: makes a sample from an image's bytes and its record; raises DataError if it cannot.
        collate: makes a batch from samples.
        world: this rank and the number of ranks.
        batch_size: samples of one rank at a step.
        seed: of order and augmentation.
        shuffle: False for the natural order.
        pad: mark repeated samples as padding, for evaluation: those that fill up the last batch,
            and those that replace a sample that cannot be used.
        canvases: heights and widths, the largest first, to group images by; empty to leave the
            size to ``load``.
        sizes: heights and widths from which each step draws one, whatever the shapes of its images;
            not together with ``canvases``.
        max_corrupt: the share of a rank's samples in an epoch that the stream may skip because they
            cannot be used.
        paired: the share of samples for which ``load`` gets a second one.
        repeats: how often an epoch has each image; None for once.
        threads: the number of threads that make samples if there are no workers; with more than
            one, ``load`` must be thread-safe.

    Raises:
        InputError: the split has no images.
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
        repeats: Repeats | None = None,
        threads: int = 1,
    ) -> None:
        super().__init__()
        self.source, self.load, self.collate = source, load, collate
        self.world, self.batch_size, self.seed = world, batch_size, seed
        self.shuffle, self.pad = shuffle, pad
        self.canvases, self.sizes = canvases, sizes
        if not source.shard_sizes.sum():
            raise InputError(f"{source.where(0)}: there are no images in this split")
        # The epoch, and the samples consumed before its first batch; persistent workers see them.
        self.progress = torch.zeros(2, dtype=torch.int64).share_memory_()
        self.max_corrupt, self.paired, self.threads = max_corrupt, paired, threads
        self.repeat_threshold = 0.0 if repeats is None else repeats.threshold
        self._epochs = Epochs(
            source.shard_sizes,
            source.image_sizes,
            seed=seed,
            shuffle=shuffle,
            canvases=canvases,
            repeats=repeats,
        )
        self.samples = self._epochs.samples
        """The samples of an epoch: its images, each as often as it comes."""

    @property
    def history(self) -> tuple[int, list[Segment]]:
        """An epoch, and its earlier segments."""
        return self._epochs.history

    def resume(self, epoch: int, history: list[Segment]) -> None:
        """Sets the earlier segments of an epoch that continues; running workers do not see them."""
        self._epochs.resume(epoch, history)

    def __iter__(self) -> Iterator[Any]:
        epoch, consumed = self.progress.tolist()
        info = get_worker_info()
        if info is None:
            return self._batches(epoch, consumed, 0, 1, self.threads)
        cv2.setNumThreads(0)  # the workers are the threads
        return self._batches(epoch, consumed, info.id, info.num_workers, 1)

    def _batches(
        self, epoch: int, consumed: int, worker: int, workers: int, threads: int = 1
    ) -> Iterator[Any]:
        """Yields each batch, or None if it could not be filled, with its skipped samples."""
        order = self._epochs.order(epoch)
        plan = self._epochs.plan(order, epoch, self.world, self.batch_size, consumed)
        window, damaged = -1, Skipped()
        steps = range(worker, plan.steps, workers)
        own = self._epochs.order(epoch)
        self.source.announce(upcoming(own, plan, steps, self.seed, epoch, self.paired))
        with contextlib.ExitStack() as stack:
            pool = None
            if threads > 1:  # they end with the epoch, because forking with threads is unsafe
                pool = stack.enter_context(ThreadPoolExecutor(threads))
            for step in steps:
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
        """Makes a batch; returns it with those of its own samples that it had to skip.

        ``damaged`` collects every damaged sample, also those tried as replacements, which are
        reported with the batch that they belong to. If there are too many, the result is no batch,
        and all of ``damaged``.
        """
        positions = plan.positions(step)
        samples, padding, skipped = [], [], Skipped()
        firsts = [*zip(positions.tolist(), places(order, positions), strict=True)]
        make = partial(self._make, epoch=epoch, canvas=canvas)
        read = partial(self._read, order=order, epoch=epoch)
        for position, first, begun in self._begun(firsts, read, make, damaged, pool):
            others = (p for n in plan.substitutes(position, step) for p in places(order, n))
            for place in chain([first], others):
                if place not in damaged:
                    try:
                        if place == first and begun is not None:
                            samples.append(begun.result())
                        else:
                            alone = place != first  # a replacement may itself be the second sample
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
        """Yields each position and place with the future of its sample, which a thread makes.

        The future is None if there are no threads, or if the sample is known to be damaged.

        Only this thread reads, because sources are not thread-safe; and so a failed or interrupted
        download ends the iteration at once, instead of failing again in every thread.
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
        """Reads the sample at a place; returns its bytes, record and shard, and a second sample.

        The second sample is None unless ``partner`` draws one for the position.
        """
        found, other = self.source.read(*place), None
        if position is None:
            return *found, place[0], None
        if (second := partner(self.seed, epoch, position, self.paired)) is not None:
            # A damaged second sample is reported at its own position.
            with contextlib.suppress(DataError):
                other = self.source.read(*next(places(order, second)))
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
        records = [record] if other is None else [record, other[1]]
        try:
            with in_turn(max(one["width"] * one["height"] for one in records)):
                return self.load(*given) if other is None else self.load(*given, other=other)
        except InputError as error:
            raise type(error)(f"{self._name(record, shard)}: {error}") from error
        except Exception as error:
            error.add_note(f"while sample {self._name(record, shard)} was made")
            raise

    def _name(self, record: Record, shard: int) -> str:
        return f"{record['file_name']} (in {self.source.where(shard)})"
