"""What a run of ``autotimm-shard`` is told, and what it tells, beside the job itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from autotimm.format.manifest import Manifest
from autotimm.sharding.processes import Progress
from autotimm.sharding.writer import Written


class Terminated(BaseException):
    """SIGTERM came."""


@dataclass(frozen=True, slots=True)
class Part:
    """The share of a run that one machine writes: shard k is written by part ``k % of + 1``."""

    which: int
    of: int


@dataclass(frozen=True, slots=True)
class Display:
    """How a run tells what it does; by default not at all.

    Attributes:
        waiting: wrapped round what takes a while, with a word on what that is.
        bar: given the number of images, yields what is called with the number done.
        say: prints a line.
    """

    waiting: Callable[[str], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    bar: Callable[[int], contextlib.AbstractContextManager[Progress]] = lambda _: (
        contextlib.nullcontext(lambda _: None)
    )
    say: Callable[[str], object] = lambda _: None


@dataclass(slots=True)
class Outcome:
    """What a run did.

    Attributes:
        state: "written", "complete" (it was already), "part" or "dry run".
        splits: what was written of each split, by this run or before (with ``part``: of its share).
        manifest: as it is in place now; None after a part or a dry run.
        new: shards that this run wrote.
        kept: shards that an earlier run had written.
        images: of the new shards.
        seconds: it took in all.
        workers: processes that wrote.
    """

    state: str
    splits: dict[str, Written]
    manifest: Manifest | None = None
    new: int = 0
    kept: int = 0
    images: int = 0
    seconds: float = 0.0
    workers: int = 0
