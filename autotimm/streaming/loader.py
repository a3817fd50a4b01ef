"""The loader of a stream: epoch after epoch, resumable at any batch, with an account of its losses.

Invariants: the state is the same on every rank, so that rank 0's checkpoint serves all; a batch
counts as consumed when it is handed out, however many were made ahead; an epoch in which more
samples were skipped than allowed ends with an error.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from torch.utils.data import DataLoader

from autotimm.streaming.buckets import Segment
from autotimm.streaming.dataset import Failure, SampleStream, Skipped
from autotimm.streaming.order import steps_per_epoch
from autotimm.streaming.workers import outlive_signals, shielded
from autotimm.structures import InputError

_NAMED = 20  # samples that an error lists


class StreamLoader:
    """The loader of a stream: an iterable with a length and a state.

    Every iteration is the next epoch, unless nothing was taken from the one before. ``skipped`` has
    the samples of the epoch, since it began or was resumed, that could not be used. It holds a
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

    skipped: Skipped
    """Of this rank, in the batches that were taken."""
    recounted: bool
    """Whether ``step`` is not that of the state which was loaded, made under another global batch;
    a trainer's own count of batches has to be set to it then."""
    waited: float
    """Seconds that the takers of batches have waited for them, in all epochs together."""

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
            "collate_fn": _as_it_is,
            "num_workers": num_workers,
            "pin_memory": pin_memory,
        }
        if num_workers:
            self._options |= {
                "prefetch_factor": prefetch_factor,
                "persistent_workers": persistent_workers,
                "multiprocessing_context": multiprocessing_context,
                "worker_init_fn": outlive_signals,
            }
        self._loader: DataLoader | None = None
        self._epoch = epoch
        self._start = 0  # samples of the epoch that were consumed before its first batch from here
        self._step = 0  # batches taken in the epoch, before a resume included
        self._consumed = 0  # samples that all ranks together took in the epoch
        self._resumed = False
        self.recounted = False
        self.skipped = {}
        self.waited = 0.0

    @property
    def epoch(self) -> int:
        """The epoch that is running, or that runs next if none has begun."""
        return self._epoch

    @property
    def global_batch(self) -> int:
        """Samples that all ranks together take at a step."""
        return self.stream.world.size * self.stream.batch_size

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self._steps_from(0)

    @property
    def step(self) -> int:
        """Batches taken in the epoch.

        After a resume under another global batch: as many as leave those that are to come, so that
        step and length tell when the epoch ends.
        """
        return self._step

    def __iter__(self) -> Iterator[Any]:
        # A generator: nothing begins before the first batch is asked for. Lightning makes iterators
        # that it does not use, which must neither start workers nor count as an epoch.
        if self._consumed >= self.stream.samples or (self._consumed and not self._resumed):
            self._epoch += 1
            self._step = self._consumed = 0
            self.recounted = False
        self._resumed = False
        self._start, self.skipped = self._consumed, {}
        self.stream.progress[0], self.stream.progress[1] = self._epoch, self._start
        since = time.perf_counter()
        if self._loader is None:
            self._loader = DataLoader(self.stream, **self._options)
        for item in self._received(self._loader):
            if isinstance(item, Failure):
                self.close()
                raise InputError(item.message)
            batch, skipped = item
            if skipped:
                self._count(skipped)
            if batch is None or len(self.skipped) > self._most_skipped():
                self.close()
                raise InputError(self._too_much())
            # Counted before it is handed out: a checkpoint that is saved at its step includes it.
            self._step += 1
            self._consumed += self.global_batch
            made = self._finish(batch) if self._finish else batch
            self.waited += time.perf_counter() - since
            yield made
            since = time.perf_counter()

    def close(self) -> None:
        """Ends the workers; the next iteration starts new ones."""
        self._loader = None

    def state_dict(self) -> dict[str, Any]:
        """Where this loader is, the same on every rank.

        ``consumed`` samples of ``epoch`` were taken, in ``step`` batches of ``global_batch``; all
        of them where the epoch is over, so that the next one follows. ``segments`` tells under
        which global batches and canvases, where images were grouped by shape.
        """
        over = self._limit is not None and self._step >= self._limit()
        canvases = self.stream.canvases
        parts = [*self._history(), Segment(self.global_batch, self._consumed, canvases)]
        return {
            "seed": self.stream.seed,
            "epoch": self._epoch,
            "step": self._step,
            "consumed": self.stream.samples if over else min(self._consumed, self.stream.samples),
            "global_batch": self.global_batch,
            "fingerprint": self.stream.source.fingerprint,
            "segments": [asdict(p) for p in parts] if any(p.canvases for p in parts) else [],
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
        self._step = len(self) - self._steps_from(self._consumed)
        self.recounted = state["global_batch"] != self.global_batch
        self._start = self._consumed if self._consumed < self.stream.samples else 0
        self._resumed = True
        parts = [
            Segment(p["global_batch"], p["until"], tuple((h, w) for h, w in p["canvases"]))
            for p in state.get("segments", [])
        ]
        now, canvases = self.global_batch, self.stream.canvases
        if not self._start:
            parts = []
        elif canvases and not parts:
            parts = [Segment(1, self._start)]
        elif parts and (parts[-1].global_batch, parts[-1].canvases) == (now, canvases):
            parts.pop()  # which goes on
        self.close()
        self.stream.resume(self._epoch, parts)

    def _received(self, loader: DataLoader) -> Iterator[Any]:
        try:
            with shielded(loader.multiprocessing_context):
                batches = iter(loader)
            yield from batches
        except RuntimeError as error:
            killed = killed_worker(error)
            if killed is None:
                raise
            self.close()
            raise killed from error

    def _steps_from(self, consumed: int) -> int:
        stream = self.stream
        return steps_per_epoch(stream.samples, stream.world.size, stream.batch_size, consumed)

    def _history(self) -> list[Segment]:
        epoch, parts = self.stream.history
        return parts if epoch == self._epoch else []

    def _count(self, skipped: list[tuple[int, int, str]]) -> None:
        if not self.skipped:
            warnings.warn(f"skipped, as it cannot be used: {skipped[0][2]}", stacklevel=3)
        self.skipped |= {(shard, index): text for shard, index, text in skipped}

    def _most_skipped(self) -> float:
        return self.stream.max_corrupt * self.stream.samples / self.stream.world.size

    def _too_much(self) -> str:
        named = "; ".join(list(self.skipped.values())[:_NAMED])
        more = f"; and {len(self.skipped) - _NAMED} more" if len(self.skipped) > _NAMED else ""
        samples = self.stream.samples / self.stream.world.size
        return (
            f"too many samples cannot be used, {len(self.skipped)}, where max_corrupt="
            f"{self.stream.max_corrupt:g} of a rank's {samples:.0f} in an epoch may be skipped: "
            f"{named}{more}: {self.stream.source.remedy}, or raise max_corrupt"
        )


def killed_worker(error: BaseException) -> InputError | None:
    """What there is to do where DataLoader says that a worker was killed; None if it does not.

    It says so where the next batch is waited for, or from the signal of the worker's end, which
    may come anywhere in the main thread. A worker that ended by itself, where DataLoader tells its
    exit code, is a fault of another kind.
    """
    told = f"{error} {error.__cause__ or ''}"
    if not told.startswith("DataLoader worker (pid") or "exit code" in told:
        return None
    return InputError(
        "a data worker was killed (out of memory?): lower data.num_workers, data.prefetch_factor "
        "or data.batch_size"
    )


def _as_it_is(batch: Any) -> Any:
    """In place of DataLoader's conversion, which makes a tensor of every array in a worker."""
    return batch
