"""A run's part, its display, and its outcome."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from autotimm.format.manifest import Manifest
from autotimm.sharding.processes import Progress
from autotimm.sharding.writer import Written
from autotimm.structures import PixelRange


class Terminated(BaseException):
    """Raised when the process gets SIGTERM."""


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a run that one machine writes: part ``k % of + 1`` writes shard k."""

    which: int
    of: int


@dataclass(frozen=True, slots=True)
class Display:
    """How a run reports its progress; by default not at all.

    Attributes:
        waiting: makes a context manager around a slow step, from a text that describes the step.
        bar: makes a context manager from the number of images; it yields the function to call with
            each number of images just done.
        say: prints a line.
    """

    waiting: Callable[[str], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    bar: Callable[[int], contextlib.AbstractContextManager[Progress]] = lambda _: (
        contextlib.nullcontext(lambda _: None)
    )
    say: Callable[[str], object] = lambda _: None


@dataclass(slots=True)
class Outcome:
    """The result of a run.

    Attributes:
        state: "written", "complete" (there was nothing left to do), "part" or "dry run".
        splits: the contents of each split, of earlier runs too; of a part, only its share.
        manifest: the manifest in the destination; None after a part or a dry run.
        new: the number of shards that this run wrote.
        kept: the number of shards that an earlier run had written.
        images: the number of images in the new shards.
        seconds: the duration of the run.
        workers: the number of processes that wrote.
        pixel_range: values that become black and white in images of more than 8 bits a channel.
    """

    state: str
    splits: dict[str, Written]
    manifest: Manifest | None = None
    new: int = 0
    kept: int = 0
    images: int = 0
    seconds: float = 0.0
    workers: int = 0
    pixel_range: PixelRange = None
