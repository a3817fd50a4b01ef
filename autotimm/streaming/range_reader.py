"""Reads samples of shards at a URL by their byte ranges, which are fetched ahead along the plan.

Invariants: reading ahead does not change which sample is read when, and its errors reach nobody but
the reader of the sample, in its turn; until the first batch is there, nothing else is asked for.

A process that is forked begins with neither connections nor a plan, however far its parent had
read. What it inherits are sockets, which it closes: no thread, no lock and no event loop.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch.utils.data import get_worker_info

from autotimm.streaming.cached_shards import CachedShardFiles
from autotimm.streaming.range_fetcher import Fetcher, Sample
from autotimm.streaming.upcoming import Place
from autotimm.structures import InputError

_IN_FLIGHT, _LEAST = 64, 8  # requests at a time of all workers of a rank, and of one at least
_AHEAD = 64  # samples


@dataclass(slots=True)
class _Progress:
    """How far a process has read, and what it will read.

    Attributes:
        fetcher: with its connections.
        pid: of the process.
        steps: samples of the batches that are not in the plan yet.
        planned: samples to ask for, in this order.
        ahead: samples that were taken from the steps and not read yet, of shards that the cache
            does not have as a whole.
        first: those of the first step among them.
        shards: of this window and the next one.
    """

    fetcher: Fetcher
    pid: int = field(default_factory=os.getpid)
    steps: Iterator[list[Place]] = field(default_factory=lambda: iter(()))
    planned: OrderedDict[Place, None] = field(default_factory=OrderedDict)
    ahead: int = 0
    first: int = 0
    shards: list[int] = field(default_factory=list)


class RangeReader:
    """Reads samples by ranges.

    Args:
        files: the shards, at a URL.
    """

    def __init__(self, files: CachedShardFiles) -> None:
        self._files = files
        self._made: _Progress | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_made": None}

    def announce(self, steps: Iterator[list[Place]]) -> None:
        """Replaces the plan.

        Args:
            steps: the samples of each batch, in the order in which they will be read.
        """
        now = self._progress()
        now.steps, now.ahead = steps, 0
        now.planned.clear()
        now.fetcher.forget()
        self._plan_step(now)
        now.first = now.ahead

    def prefetch(self, shards: list[int]) -> None:
        """Downloads the indices of these shards in the background, after the first batch."""
        now = self._progress()
        now.fetcher.shards.close_all_but(shards)
        now.shards = shards
        if not now.first:
            self._files.prefetch(shards, tars=False)

    def reads(self, shard: int) -> bool:
        """Whether samples of a shard are read here, as the cache does not have the whole tar."""
        return not self._progress().fetcher.shards.opened(shard).whole

    def sample(self, shard: int, index: int) -> Sample | None:
        """Reads a sample; None if its bytes differ from the index, also when they come anew.

        Raises:
            NoRangesError: the server sends whole files alone.
            InputError: it cannot be downloaded.
        """
        now, place = self._progress(), (shard, index)
        now.ahead -= 1
        while not now.first and now.ahead < _AHEAD and self._plan_step(now):
            pass
        self._ask_ahead(now)
        now.planned.pop(place, None)
        if now.fetcher.no_ranges is not None:
            raise now.fetcher.no_ranges
        found = None if now.fetcher.knows(place) else now.fetcher.cached(place)
        if found is None:
            found = now.fetcher.fetched(place)
        if now.first:
            now.first -= 1
            if not now.first and now.shards:
                self._files.prefetch(now.shards, tars=False)
        return found

    def record(self, shard: int, index: int) -> memoryview | None:
        """Reads the record of a sample; None if its bytes differ from the index.

        It is fetched with its image, as are those behind it in the shard, which are probably next.

        Raises:
            NoRangesError, InputError: as ``sample``.
        """
        fetcher = self._progress().fetcher
        text = fetcher.cached_record((shard, index))
        if text is not None:
            return text
        if not fetcher.knows((shard, index)):
            rest = range(index, len(fetcher.shards.opened(shard).rows))
            self.announce(iter([[(shard, i)] for i in rest]))
        found = self.sample(shard, index)
        return None if found is None else found[1]

    def close(self) -> None:
        """Closes the connections of this process, and forgets its plan."""
        if self._made is not None:
            self._made.fetcher.close()
            self._made = None

    def _progress(self) -> _Progress:
        if self._made is not None and self._made.pid != os.getpid():
            self.close()
        if self._made is None:
            info = get_worker_info()
            most = _IN_FLIGHT if info is None else max(_LEAST, _IN_FLIGHT // info.num_workers)
            self._made = _Progress(Fetcher(self._files, most))
        return self._made

    def _plan_step(self, now: _Progress) -> bool:
        """Takes a further step into the plan; returns whether there was one."""
        step = next(now.steps, None)
        if step is None:
            return False
        shards = {shard for shard, _ in step}
        self._files.fetch_indices([s for s in shards if not now.fetcher.shards.is_open(s)])
        now.planned |= dict.fromkeys(step)
        whole = set[int]()
        with contextlib.suppress(InputError):  # which the reader gets in its turn
            whole = {shard for shard in shards if now.fetcher.shards.is_whole(shard)}
        now.ahead += sum(shard not in whole for shard, _ in step)
        return True

    def _ask_ahead(self, now: _Progress) -> None:
        """Asks for as many of the planned samples as may be on their way."""
        now.fetcher.receive(0)
        for place in reversed(now.fetcher.again):
            now.planned[place] = None
            now.planned.move_to_end(place, last=False)
        now.fetcher.again.clear()
        # The reader of the sample gets the error, of the index or of botocore, in its turn.
        with contextlib.suppress(Exception):
            lacking = set[int]()  # an index that cannot be had is waited for by its readers alone
            for place in [*now.planned]:
                if not now.fetcher.may_ask:
                    break
                if place[0] in lacking or not now.fetcher.shards.need_no_download(place[0]):
                    lacking.add(place[0])
                    continue
                del now.planned[place]
                now.fetcher.ask(place, now.planned)
