"""The range of images of more than 8 bits where no manifest says it: that of some of them."""

from __future__ import annotations

import contextlib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autotimm.images.decode import DataError, deep_pixels
from autotimm.images.depths import Depths
from autotimm.structures import PixelRange, Record

LOOKED_AT = 64
"""Images, evenly spaced, of which the range is found. As it mostly is that of whole bits, that is
enough; autotimm-shard looks at all."""


class _Readable(Protocol):
    shard_sizes: NDArray[np.int64]

    def read(self, shard: int, index: int) -> tuple[bytes | memoryview, Record]: ...


def sampled_range(source: _Readable) -> PixelRange:
    """Returns the range of a source's images; None where those looked at have 8 bits, or declare
    how many. The same images give the same range on every rank."""
    return sampled_depths(source)[0].pixel_range()


def sampled_depths(source: _Readable) -> tuple[Depths, int]:
    """Returns what the images of more than 8 bits have, of those that are looked at, and how many
    these are."""
    depths = Depths()
    places = spread(source.shard_sizes, LOOKED_AT)
    for shard, index in places:
        with contextlib.suppress(DataError):  # reported when an epoch comes to it
            data, record = source.read(shard, index)
            deep = deep_pixels(data)
            if deep is not None:
                depths.add(deep, record["file_name"])
    return depths, len(places)


def spread(shard_sizes: NDArray[np.int64], most: int) -> list[tuple[int, int]]:
    """Returns shard and index of samples that are evenly spaced.

    Args:
        shard_sizes: [shards], how many samples each has.
        most: how many samples at most.
    """
    ends = np.cumsum(shard_sizes)
    count = int(ends[-1]) if len(ends) else 0
    places = []
    for k in range(min(most, count)):
        position = k * count // min(most, count)
        shard = int(np.searchsorted(ends, position, side="right"))
        places.append((shard, position - int(ends[shard] - shard_sizes[shard])))
    return places
