"""Which samples go into which shard, and under which keys: a pure function of names and sizes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from autotimm.coco.join import Index
from autotimm.format.tar import BLOCK, RECORD

_KEY = 80  # characters; a ustar name has room for 100 with the extension


class ShardPlan(NamedTuple):
    """What goes into one shard: positions in the split and the samples' keys, in order."""

    name: str
    samples: tuple[tuple[int, str], ...]


def make_keys(names: Iterable[tuple[str, int]]) -> list[str]:
    """Makes the WebDataset keys of (file name, image id) pairs: unique, without dots, not long.

    A key is the name without its extension, odd characters and folders' slashes as "_"; where
    that is taken already, the image id is put behind it. It begins with a letter or digit: tar's
    command line would take what begins with "-" for an option.
    """
    keys: dict[str, None] = {}  # ordered
    for name, image_id in names:
        stem = os.path.splitext(name)[0]  # noqa: PTH122 (a name, not a path of this machine)
        base = key = re.sub(r"[^A-Za-z0-9_-]", "_", stem)[:_KEY].strip("_-") or "image"
        if key in keys:
            base = key = f"{key[: _KEY - 21]}-{image_id}"
        again = 1
        while key in keys:
            key = f"{base}-{again}"
            again += 1
        keys[key] = None
    return list(keys)


def plan_shards(
    split: str,
    keys: Sequence[str],
    sizes: Sequence[int],
    samples_per_shard: int,
    max_shard_size: int,
) -> list[ShardPlan]:
    """Deals the samples of a split to shards, in order.

    Args:
        split: the shards' names begin with it.
        keys: of the samples.
        sizes: of the samples in bytes, tar headers included.
        samples_per_shard: no shard gets more samples.
        max_shard_size: nor more bytes, unless one sample alone has more.
    """
    groups: list[list[tuple[int, str]]] = []
    filled = 0
    for position, (key, size) in enumerate(zip(keys, sizes, strict=True)):
        full = groups and (
            len(groups[-1]) >= samples_per_shard or filled + size > max_shard_size - RECORD
        )
        if not groups or full:
            groups.append([])
            filled = 0
        groups[-1].append((position, key))
        filled += size
    return [
        ShardPlan(f"{split}-{number:06d}.tar", tuple(group)) for number, group in enumerate(groups)
    ]


def sample_sizes(index: Index, positions: Iterable[int]) -> list[int]:
    """Returns about how many bytes each of these samples takes in a tar."""
    return [
        _image_size(index.image_file(i)) + index.annotation_bytes(i) + 4 * BLOCK for i in positions
    ]


def _image_size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return 0  # what is wrong with it is said when it is read
