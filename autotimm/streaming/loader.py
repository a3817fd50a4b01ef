"""The loader of a stream, which can resume at any batch and counts the samples that it skips.

Invariants: the state is the same on every rank, so that rank 0's checkpoint serves all; a batch
counts as consumed when the loader yields it, however many the workers have made ahead; an epoch
with more skipped samples than allowed ends with an error.
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
from autotimm.streaming.starting import Starter
from autotimm.structures import InputError

_NAMED = 20  # samples that an error lists


class StreamLoader:
    """An iterable over the batches of a stream, with a length and a state.

    Every iteration is the next epoch, unless the one before has yielded nothing. The class wraps a
    DataLoader instead of deriving from it, because Lightning re-creates DataLoaders in order to
    inject samplers, and would lose the state.

    Args:
        stream: makes the batches.
        finish: applied to every batch in this process.
        num_workers: processes that make batches; 0 makes them in this process.
        prefetch_factor: batches that each worker makes ahead.
        persistent_workers: keep the workers from one epoch to the next.
        pin_memory: yield tensors in page-locked memory, for asynchronous copies to a GPU.
        multiprocessing_context: how to start workers: "fork", "spawn", ...; None for the default.
        epoch: the epoch to begin with.
        limit: returns the number of batches after which an epoch ends early. The loader calls it as
            late as possible, because a trainer sets it only after it has got the loader.
    """

    skipped: Skipped
    """The samples that this rank has skipped since the epoch began or was resumed."""
    recounted: bool
    """Whether ``step`` differs from the loaded state's because the global batch has changed; a
    trainer has to set its own count of batches to ``step`` then."""
    waited: float
    """Seconds that the consumer has waited for batches, in all epochs together."""

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
            "collate_fn": _unchanged,
            "num_workers": num_workers,
            "pin_memory": pin_memory,
        }
        if num_workers:
            self._options |= {
                "prefetch_factor": prefetch_factor,
                "persistent_workers": persistent_workers,
                "multiprocessing_context": multiprocessing_context,
            }

        def make(more: dict[str, Any]) -> DataLoader:
            return DataLoader(self.stream, **self._options, **more)

        self._workers = Starter(make, num_workers)
        self._epoch = epoch
        self._start = 0  # samples of the epoch consumed before this iteration began
        self._step = 0  # batches of the epoch yielded, including those before a resume
        self._consumed = 0  # samples of the epoch that all ranks together have consumed
        self._resumed = False
        self.recounted = False
        self.skipped = {}
        self.waited = 0.0

    @property
    def epoch(self) -> int:
        """The current epoch, or the first one if none has begun."""
        return self._epoch

    @property
    def global_batch(self) -> int:
        """The number of samples of all ranks together at a step."""
        return self.stream.world.size * self.stream.batch_size

    def __len__(self) -> int:
        """The number of batches in a whole epoch."""
        return self._steps_from(0)

    @property
    def step(self) -> int:
        """The number of batches of the epoch yielded so far.

        After a resume with another global batch, it is the length minus the batches that are left.
        """
        return self._step

    def __iter__(self) -> Iterator[Any]:
        # A generator does nothing before its first next(): Lightning creates iterators that it does
        # not use, and they must neither start workers nor count as an epoch.
        if self._consumed >= self.stream.samples or (self._consumed and not self._resumed):
            self._epoch += 1
            self._step = self._consumed = 0
            self.recounted = False
        self._resumed = False
        self._start, self.skipped = self._consumed, {}
        self.stream.progress[0], self.stream.progress[1] = self._epoch, self._start
        since = time.perf_counter()
        for item in self._received():
            if isinstance(item, Failure):
                self.close()
                raise InputError(item.message)
            batch, skipped = item
            if skipped:
                self._count(skipped)
            if batch is None or len(self.skipped) > self._most_skipped():
                self.close()
                raise InputError(self._too_much())
            # Counted before the yield, so that a checkpoint saved during the step includes it.
            self._step += 1
            self._consumed += self.global_batch
            made = self._finish(batch) if self._finish else batch
            self.waited += time.perf_counter() - since
            yield made
            since = time.perf_counter()

    def close(self) -> None:
        """Stops the workers; the next iteration starts new ones."""
        self._workers.close()

    def state_dict(self) -> dict[str, Any]:
        """The position of this loader, the same on every rank.

        Keys: ``consumed`` samples of ``epoch``, in ``step`` batches of ``global_batch`` samples; at
        the end of an epoch ``consumed`` is the number of all samples. ``segments`` has the global
        batches and canvases of the epoch's parts if images were grouped by shape, else nothing.
        """
        over = self._limit is not None and self._step >= self._limit()
        canvases = self.stream.canvases
        parts = [*self._history(), Segment(self.global_batch, self._consumed, canvases)]
        return {
            "seed": self.stream.seed,
            "repeat_threshold": self.stream.repeat_threshold,
            "epoch": self._epoch,
            "step": self._step,
            "consumed": self.stream.samples if over else min(self._consumed, self.stream.samples),
            "global_batch": self.global_batch,
            "fingerprint": self.stream.source.fingerprint,
            "segments": [asdict(p) for p in parts] if any(p.canvases for p in parts) else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from the state of a loader, of any world and batch size.

        Raises:
            InputError: the state is of other data, another seed or other repetitions.
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
        earlier = state.get("repeat_threshold", 0.0)  # versions without it repeated nothing
        if earlier != self.stream.repeat_threshold:
            raise InputError(
                f"data.repeat_threshold is {self.stream.repeat_threshold:g}, but the checkpoint "
                f"was trained with {earlier:g}: give the same one, as another makes another epoch, "
                "or begin anew from its weights (--weights)"
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
            parts.pop()  # it continues
        self.close()
        self.stream.resume(self._epoch, parts)

    def _received(self) -> Iterator[Any]:
        try:
            yield from self._workers.iterator()
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
        if self.stream.max_corrupt >= 1:
            return f"no sample can be used: {named}{more}: {self.stream.source.remedy}"
        return (
            f"too many samples cannot be used, {len(self.skipped)}, where max_corrupt="
            f"{self.stream.max_corrupt:g} of a rank's {samples:.0f} in an epoch may be skipped: "
            f"{named}{more}: {self.stream.source.remedy}, or raise max_corrupt"
        )


def killed_worker(error: BaseException) -> InputError | None:
    """Turns DataLoader's error about a killed worker into advice; None for any other error.

    DataLoader raises it while it waits for a batch, or from its SIGCHLD handler, anywhere in the
    main thread. If it names an exit code, the worker has ended by itself, for another reason.
    """
    message = f"{error} {error.__cause__ or ''}"
    if not message.startswith("DataLoader worker (pid") or "exit code" in message:
        return None
    return InputError(
        "a data worker was killed (out of memory?): lower data.num_workers, data.prefetch_factor "
        "or data.batch_size"
    )


def _unchanged(batch: Any) -> Any:
    """Replaces DataLoader's default collation, which would copy every array to a tensor."""
    return batch
