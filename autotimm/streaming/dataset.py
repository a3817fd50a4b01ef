"""Whole batches in the planned order, out of any number of workers, resumable at any batch.

Worker ``w`` of ``n`` makes batches ``w``, ``w + n``, ... of its rank, so that the DataLoader, which
asks its workers in turn, restores the order. Invariants: batches depend on neither the number of
workers nor, as a global batch, on how many ranks share it; the state is the same on every rank, so
that rank 0's checkpoint serves all; nothing is read for a batch that was consumed before a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from autotimm.streaming.decode import DataError
from autotimm.streaming.order import EpochOrder, batch_positions, sample_rng, steps_per_epoch
from autotimm.streaming.store import Source
from autotimm.structures import InputError, Record, World

Load = Callable[[Any, Record, np.random.Generator], Any]
"""(image file's bytes, record, randomness) -> sample."""
Collate = Callable[[list[Any], list[bool]], Any]
"""(samples, for each whether it is padding) -> batch."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """A DataError on its way from a worker, without the traceback that DataLoader would add."""

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
        pad: flag what the last batch repeats as padding (evaluation), rather than use it again.

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
    ) -> None:
        super().__init__()
        self.source, self.load, self.collate = source, load, collate
        self.world, self.batch_size, self.seed = world, batch_size, seed
        self.shuffle, self.pad = shuffle, pad
        self.samples = int(source.shard_sizes.sum())
        if not self.samples:
            raise InputError(f"{source.where(0)}: there are no images in this split")
        # Epoch and samples consumed before its first batch, seen by workers that live on.
        self.progress = torch.zeros(2, dtype=torch.int64).share_memory_()

    def __iter__(self) -> Iterator[Any]:
        epoch, consumed = self.progress.tolist()
        info = get_worker_info()
        if info is None:
            return self._batches(epoch, consumed, 0, 1)
        cv2.setNumThreads(0)  # the workers are the threads
        return self._batches(epoch, consumed, info.id, info.num_workers)

    def _batches(self, epoch: int, consumed: int, worker: int, workers: int) -> Iterator[Any]:
        order = EpochOrder(self.source.shard_sizes, self.seed, epoch, self.shuffle)
        steps = steps_per_epoch(self.samples, self.world.size, self.batch_size, consumed)
        window = -1
        for step in range(worker, steps, workers):
            positions = batch_positions(step, self.world, self.batch_size, consumed)
            if (now := order.window_of(int(positions[0]))) != window:
                window = now
                ahead = order.window_shards(now), order.window_shards(now + 1)
                self.source.prefetch(np.concatenate(ahead).tolist())
            try:
                samples = [
                    self._sample(int(shard), int(index), epoch, int(position))
                    for position, shard, index in zip(
                        positions, *order.locate(positions), strict=True
                    )
                ]
            except InputError as error:
                yield _Failure(str(error))
                return
            yield self.collate(samples, [self.pad and p >= self.samples for p in positions])

    def _sample(self, shard: int, index: int, epoch: int, position: int) -> Any:
        data, record = self.source.read(shard, index)
        name = f"{record['file_name']} (in {self.source.where(shard)})"
        try:
            return self.load(data, record, sample_rng(self.seed, epoch, position))
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        except Exception as error:
            error.add_note(f"while sample {name} was made")
            raise


class StreamLoader:
    """The loader of a stream: an iterable with a length and a state.

    Every iteration is the next epoch, unless nothing was taken from the one before. It holds a
    DataLoader rather than being one: Lightning takes DataLoaders apart to put samplers into them,
    and would lose the state.

    Args:
        stream: what to load.
        finish: applied to every batch in this process.
        num_workers: processes that make batches; 0 makes them here.
        prefetch_factor: batches that each worker makes ahead.
        persistent_workers: keep the workers from one epoch to the next.
        pin_memory: hand on tensors in page-locked memory, for copies to a GPU that do not wait.
        multiprocessing_context: how workers are started: "fork", "spawn", ..., or the default.
        epoch: the one to begin with.
        limit: tells after how many batches an epoch is over though samples are left; asked as late
            as possible, since a trainer settles it only once it has the loader.
    """

    def __init__(
        self,
        stream: SampleStream,
        *,
        finish: Callable[[Any], Any] | None = None,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        persistent_workers: bool = True,
        pin_memory: bool = False,
        multiprocessing_context: str | None = None,
        epoch: int = 0,
        limit: Callable[[], float] | None = None,
    ) -> None:
        self.stream = stream
        self._limit = limit
        self._finish = finish
        self._options: dict[str, Any] = {
            "batch_size": None,
            "num_workers": num_workers,
            "pin_memory": pin_memory,
        }
        if num_workers:
            self._options |= {
                "prefetch_factor": prefetch_factor,
                "persistent_workers": persistent_workers,
                "multiprocessing_context": multiprocessing_context,
            }
        self._loader: DataLoader | None = None
        self._epoch = epoch
        self._start = 0  # samples of the epoch that were consumed before its first batch from here
        self._step = 0  # batches taken in the epoch, before a resume included
        self._consumed = 0  # samples that all ranks together took in the epoch
        self._resumed = False

    @property
    def epoch(self) -> int:
        """The epoch that is running, or that runs next if none has begun."""
        return self._epoch

    @property
    def global_batch(self) -> int:
        """Samples that all ranks together take at a step."""
        return self.stream.world.size * self.stream.batch_size

    def __len__(self) -> int:
        """Batches in the epoch, those before a resume included."""
        size, batch = self.stream.world.size, self.stream.batch_size
        before = -(-self._start // self.global_batch)
        return before + steps_per_epoch(self.stream.samples, size, batch, self._start)

    def __iter__(self) -> Iterator[Any]:
        # A generator: nothing begins before the first batch is asked for. Lightning makes iterators
        # that it does not use, which must neither start workers nor count as an epoch.
        if self._consumed >= self.stream.samples or (self._consumed and not self._resumed):
            self._epoch += 1
            self._step = self._consumed = 0
        self._resumed = False
        self._start = self._consumed
        self.stream.progress[0], self.stream.progress[1] = self._epoch, self._start
        if self._loader is None:
            self._loader = DataLoader(self.stream, **self._options)
        for batch in self._loader:
            if isinstance(batch, _Failure):
                self.close()
                raise DataError(batch.message)
            # Counted before it is handed out: a checkpoint that is saved at its step includes it.
            self._step += 1
            self._consumed += self.global_batch
            yield self._finish(batch) if self._finish else batch

    def close(self) -> None:
        """Ends the workers; the next iteration starts new ones."""
        self._loader = None

    def state_dict(self) -> dict[str, Any]:
        """Where this loader is, the same on every rank.

        ``consumed`` samples of ``epoch`` were taken, in ``step`` batches of ``global_batch``; all
        of them where the epoch is over, so that the next one follows.
        """
        over = self._limit is not None and self._step >= self._limit()
        return {
            "seed": self.stream.seed,
            "epoch": self._epoch,
            "step": self._step,
            "consumed": self.stream.samples if over else min(self._consumed, self.stream.samples),
            "global_batch": self.global_batch,
            "fingerprint": self.stream.source.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where another loader was, whatever its world and batch size were.

        Raises:
            InputError: that loader read other data, or in another order.
        """
        if state["fingerprint"] != self.stream.source.fingerprint:
            raise InputError(
                f"{self.stream.source.where(0)}: not the data that the checkpoint was trained on; "
                "give that data, or start from the checkpoint's weights alone"
            )
        if state["seed"] != self.stream.seed:
            raise InputError(
                f"seed is {self.stream.seed}, but the checkpoint was trained with seed "
                f"{state['seed']}: give the same one, or the epoch would not be the same samples"
            )
        self._epoch, self._consumed = int(state["epoch"]), int(state["consumed"])
        self._step = -(-self._consumed // self.global_batch)
        self._start = self._consumed if self._consumed < self.stream.samples else 0
        self._resumed = True
