"""A run's part, its display, and its outcome: what was written, of a split and of all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from autotimm.coco.checks import Problems
from autotimm.format.manifest import Manifest, Shard
from autotimm.images.depths import Depths
from autotimm.sharding.processes import Progress
from autotimm.structures import PixelRange


class Terminated(BaseException):
    """Raised when the process gets SIGTERM."""


class Part(NamedTuple):
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
class Written:
    """What was written, and what was odd.

    Attributes:
        crowd: part of the instances.
        ignored: part of the instances too, none of it crowd.
        untrained: the names of the split's categories that have such instances only.
        depths: the images of more than 8 bits a channel.
        checksums: of one shard alone, of each planned sample's image file; 0 where it is left out.
    """

    shards: list[Shard] = field(default_factory=list)
    images: int = 0
    instances: int = 0
    crowd: int = 0
    ignored: int = 0
    bytes: int = 0
    problems: Problems = field(default_factory=Problems)
    untrained: list[str] = field(default_factory=list)
    depths: Depths = field(default_factory=Depths)
    checksums: list[int] = field(default_factory=list)

    def add(self, other: Written) -> None:
        """Adds what another part of the work wrote."""
        self.shards += other.shards
        self.images += other.images
        self.instances += other.instances
        self.crowd += other.crowd
        self.ignored += other.ignored
        self.bytes += other.bytes
        self.problems.update(other.problems)
        self.depths.update(other.depths)


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
