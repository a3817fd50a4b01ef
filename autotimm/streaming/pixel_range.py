"""The range of images of more than 8 bits where no manifest says it: that of some of them."""

from __future__ import annotations

import contextlib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autotimm.images.decode import DataError, deep_pixels
from autotimm.images.depth import Depths
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
    ends = np.cumsum(source.shard_sizes)
    count = int(ends[-1]) if len(ends) else 0
    depths = Depths()
    positions = sorted({k * count // LOOKED_AT for k in range(LOOKED_AT)} if count else ())
    for position in positions:
        shard = int(np.searchsorted(ends, position, side="right"))
        index = position - int(ends[shard] - source.shard_sizes[shard])
        with contextlib.suppress(DataError):  # told where its turn in an epoch is
            data, record = source.read(shard, index)
            deep = deep_pixels(data)
            if deep is not None:
                depths.add(deep, record["file_name"])
    return depths, len(positions)
