"""Writes the shards of a split: planned first, then each written whole, one after another.

Invariants: the plan is a pure function of names and sizes, a shard's bytes one of the plan and the
files (no clock, no user, no order of a file system in them), so who writes which shard when never
shows. The image bytes are the source's own. An image that cannot be used is left out and counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import orjson

from autotimm import images
from autotimm.coco import CocoIndex, Problems
from autotimm.sharding.index import INDEX_DTYPE, checksum, index_bytes
from autotimm.sharding.manifest import BLOCK, Shard, whole_file

_RECORD = 20 * BLOCK  # tar files end on a multiple of this
_KEY = 80  # characters; a ustar name has room for 100 with the extension
_HEADER = b"".join(
    [
        b"0000644\0" + b"0000000\0" * 2,  # mode, user, group
        b"%011o\0" + b"0" * 11 + b"\0",  # size, time
        b" " * 8 + b"0" + b"\0" * 100,  # checksum, type (a file), link
        b"ustar\x0000" + b"\0" * 247,  # magic, version, names and numbers that a file needs not
    ]
)


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """What goes into one shard: positions in the split and the samples' keys, in order."""

    name: str
    samples: tuple[tuple[int, str], ...]


@dataclass(slots=True)
class Written:
    """What was written (crowd is part of instances), and what was odd."""

    shards: list[Shard] = field(default_factory=list)
    images: int = 0
    instances: int = 0
    crowd: int = 0
    bytes: int = 0
    problems: Problems = field(default_factory=Problems)

    def add(self, other: Written) -> None:
        """Adds what another part of the work wrote."""
        self.shards += other.shards
        self.images += other.images
        self.instances += other.instances
        self.crowd += other.crowd
        self.bytes += other.bytes
        self.problems.update(other.problems)


def make_keys(names: Iterable[tuple[str, int]]) -> list[str]:
    """Makes the WebDataset keys of (file name, image id) pairs: unique, without dots, not long.

    A key is the name without its extension, odd characters and folders' slashes as "_"; where
    that is taken already, the image id is put behind it.
    """
    keys: dict[str, None] = {}  # ordered
    for name, image_id in names:
        stem = os.path.splitext(name)[0]  # noqa: PTH122 (a name, not a path of this machine)
        base = key = re.sub(r"[^A-Za-z0-9_-]", "_", stem)[:_KEY].strip("_") or "image"
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
            len(groups[-1]) >= samples_per_shard or filled + size > max_shard_size - _RECORD
        )
        if not groups or full:
            groups.append([])
            filled = 0
        groups[-1].append((position, key))
        filled += size
    return [
        ShardPlan(f"{split}-{number:06d}.tar", tuple(group)) for number, group in enumerate(groups)
    ]


def sample_sizes(index: CocoIndex, count: int) -> list[int]:
    """Returns about how many bytes each of the first ``count`` samples takes in a tar."""
    return [
        _image_size(index.image_file(i)) + index.annotation_bytes(i) + 4 * BLOCK
        for i in range(count)
    ]


def write_shard(
    folder: Path,
    plan: ShardPlan,
    index: CocoIndex,
    progress: Callable[[int], object] = lambda _: None,
) -> Written:
    """Writes one shard and its index into a folder; neither has its name before it is whole.

    Args:
        folder: exists.
        plan: what goes into the shard.
        index: the split that the plan is of.
        progress: called with the number of images done since the last call.

    Returns:
        What was written; no shard if none of the images can be used.
    """
    written = Written()
    rows: list[tuple[int, ...]] = []
    digest = hashlib.sha256()
    with contextlib.suppress(_NothingToWriteError), whole_file(folder / plan.name) as file:
        for position, key in plan.samples:
            row = _write_sample(file, digest.update, index, position, key, written)
            if row:
                rows.append(row)
            progress(1)
        if not rows:
            raise _NothingToWriteError
        end = b"\0" * (2 * BLOCK + -(written.bytes + 2 * BLOCK) % _RECORD)
        _write(file, [end])
        digest.update(end)
        written.bytes += len(end)
    if not rows:
        return written
    content = index_bytes(np.array(rows, INDEX_DTYPE))
    index_name = plan.name.removesuffix(".tar") + ".idx.npy"
    with whole_file(folder / index_name) as file:
        file.write(content)
    written.images = len(rows)
    written.shards.append(
        Shard(
            name=plan.name,
            samples=len(rows),
            bytes=written.bytes,
            sha256=digest.hexdigest(),
            index=index_name,
            index_sha256=hashlib.sha256(content).hexdigest(),
        )
    )
    return written


class _NothingToWriteError(Exception):
    """None of a shard's images can be used: its temporary file goes."""


def _write_sample(
    file: BinaryIO,
    hashed: Callable[[bytes], object],
    index: CocoIndex,
    position: int,
    key: str,
    written: Written,
) -> tuple[int, ...] | None:
    """Appends one sample; returns its row of the index, or None if it had to be left out."""
    try:
        with open(index.image_file(position), "rb", buffering=0) as source:  # noqa: PTH123
            data = source.read()
        if len(data) >= 2**32:
            raise ValueError("image file of 4 GiB or more")  # the index has 32 bits for it
        extension, size = images.inspect(data)
        declared = index.size(position)
        if size != declared and images.shown_size(data) != declared:
            raise ValueError("width and height are not the picture's")
    except (OSError, ValueError) as error:
        reason = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
        written.problems.add(f"{reason} (image left out)", index.file_name(position))
        return None
    record = index.record(position, written.problems)
    text = orjson.dumps(record)
    image_at = written.bytes + BLOCK
    json_at = image_at + len(data) + -len(data) % BLOCK + BLOCK
    pieces = [
        tar_header(f"{key}.{extension}", len(data)),
        data,
        b"\0" * (-len(data) % BLOCK) + tar_header(f"{key}.json", len(text)),
        text + b"\0" * (-len(text) % BLOCK),
    ]
    _write(file, pieces)
    for piece in pieces:
        hashed(piece)
    written.bytes += sum(map(len, pieces))
    crowd = sum(annotation["iscrowd"] for annotation in record["annotations"])
    written.crowd += crowd
    written.instances += len(record["annotations"])
    at = image_at, len(data), json_at, len(text)
    return (*at, *declared, record["image_id"], checksum(data), checksum(text))


def tar_header(name: str, size: int) -> bytes:
    """Returns the ustar header of a file: POSIX.1-1988, all but name and size constant."""
    if len(name) > 100 or size >= 8**11:
        raise ValueError(f"{name} ({size} bytes) does not fit a ustar header")
    header = name.encode("ascii").ljust(100, b"\0") + _HEADER % size
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _write(file: BinaryIO, pieces: list[bytes]) -> None:
    """Writes all pieces with one system call, as a rule."""
    done = os.writev(file.fileno(), pieces)
    rest = b"".join(pieces)[done:] if done < sum(map(len, pieces)) else b""
    while rest:  # a signal or a quota cut it short
        rest = rest[os.write(file.fileno(), rest) :]


def _image_size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return 0  # what is wrong with it is said when it is read
