"""Whether samples of a URL's shards are read by ranges, or from shards that are downloaded whole.

A server shows by its answers whether it sends ranges. Once one answer is a whole file, all workers
of a rank download shards whole, and one of them says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from autotimm.files.connection import NoRangesError
from autotimm.streaming.cached_shards import CachedShardFiles
from autotimm.streaming.range_fetcher import Sample
from autotimm.streaming.range_reader import RangeReader
from autotimm.streaming.upcoming import Place

_T = TypeVar("_T")


class ByRanges:
    """The samples of a URL's shards, as far as they can be read by ranges.

    Args:
        files: the shards.
    """

    def __init__(self, files: CachedShardFiles) -> None:
        self._files, self._reader = files, RangeReader(files)
        self._found = torch.zeros(1, dtype=torch.uint8).share_memory_()  # 1: there are no ranges
        self._plan: list[int] = []

    @property
    def off(self) -> bool:
        """Whether the server was found to send whole files alone."""
        return bool(self._found.item())

    def announce(self, steps: Iterator[list[Place]]) -> None:
        """Replaces the plan; see ``Source``."""
        if not self.off:
            self._instead(lambda: self._reader.announce(steps))

    def prefetch(self, shards: list[int]) -> None:
        """Downloads in the background what these shards need: indices, or all of them."""
        self._plan = shards
        if self.off:
            self._files.prefetch(shards)
        else:
            self._reader.prefetch(shards)

    def reads(self, shard: int) -> bool:
        """Whether samples of a shard are read here; else the whole tar is, or is to be, cached."""
        return not self.off and self._reader.reads(shard)

    def sample(self, shard: int, index: int) -> Sample | None:
        """Reads a sample; None if its bytes have changed, or if it turns out that ``off`` is true.

        Raises:
            InputError: it cannot be downloaded.
        """
        return self._instead(lambda: self._reader.sample(shard, index))

    def record(self, shard: int, index: int) -> memoryview | None:
        """Reads a record; as ``sample``."""
        return self._instead(lambda: self._reader.record(shard, index))

    def _instead(self, read: Callable[[], _T]) -> _T | None:
        try:
            return read()
        except NoRangesError as error:
            with self._files.cache.lock("ranges"):
                told = self.off
                self._found[0] = 1
            if not told:
                logging.getLogger("autotimm").warning(
                    "%s: the server sends no ranges of it (%s), so shards are downloaded whole",
                    self._files.where(0),
                    error,
                )
            self._reader.close()
            self._files.prefetch(self._plan)
            return None
