"""The shards at a URL that a process has open: their indices, and their files in the cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from autotimm.files.connection import NoRangesError
from autotimm.streaming.cached_shards import CachedShardFiles
from autotimm.streaming.open_shard import span
from autotimm.streaming.sparse import SparseFile

_OPEN = 64  # files


@dataclass(slots=True)
class PartialShard:
    """What is known of a shard, and its file in the cache.

    Attributes:
        rows: the index.
        file: for single samples.
        url: of the tar.
        whole: whether the cache has the whole tar.
    """

    rows: np.ndarray
    file: SparseFile
    url: str
    whole: bool

    def span(self, index: int) -> tuple[int, int]:
        """Where a sample begins and ends in the tar."""
        found = span(self.rows[index].item())
        if found is None:
            raise NoRangesError("the image and the record of a sample lie apart")
        return found

    def may_hold(self, index: int) -> bool:
        """Whether a sample seems to be in the cache; only its checksum tells."""
        return self.whole or self.file.may_hold(int(self.rows[index]["image_offset"]))


class PartialShards:
    """The open shards; of one process.

    Args:
        files: the shards.
    """

    def __init__(self, files: CachedShardFiles) -> None:
        self._files = files
        self._open: OrderedDict[int, PartialShard] = OrderedDict()

    def opened(self, shard: int) -> PartialShard:
        """A shard, of which the index is downloaded first.

        Raises:
            InputError: the index or the cache cannot be read.
        """
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        files = self._files
        rows, url = files.index(shard), files.url_of(shard)
        self._open[shard] = PartialShard(rows, files.sparse(shard), url, files.has_whole(shard))
        while len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return self._open[shard]

    def close_all_but(self, shards: Collection[int]) -> None:
        """Closes files, so that the disk frees those that the cache removes."""
        for shard in self._open.keys() - set(shards):
            del self._open[shard]

    def is_open(self, shard: int) -> bool:
        """Whether ``opened`` needs no file."""
        return shard in self._open

    def need_no_download(self, shard: int) -> bool:
        """Whether ``opened`` finds all that it needs on this machine."""
        return shard in self._open or self._files.has_index(shard)

    def is_whole(self, shard: int) -> bool:
        """Whether the cache has the whole tar."""
        if shard in self._open:
            return self._open[shard].whole
        return self._files.has_whole(shard)
