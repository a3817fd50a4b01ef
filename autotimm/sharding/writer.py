"""Writes the shards of a split: planned first, then each written whole, one after another.

Invariants: the plan is a pure function of names and sizes, a shard's bytes one of the plan and the
files (no clock, no user, no order of a file system in them), so who writes which shard when never
shows. The image bytes are the source's own. An image that cannot be used is left out and counted.
"""

from __future__ import annotations

import contextlib
import gc
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
from autotimm.checks import Problems
from autotimm.coco import CocoIndex
from autotimm.sharding.index import INDEX_DTYPE, checksum, index_bytes
from autotimm.sharding.manifest import BLOCK, Shard, whole_file

_RECORD = 20 * BLOCK  # tar files end on a multiple of this
_KEY = 80  # characters; a ustar name has room for 100 with the extension
_AT_ONCE = 2 << 20  # bytes of images that are read before their samples are written
_PIECES = 1000  # of one system call; Linux takes 1,024

# The ustar header of a file, but for name, size and checksum.
_ZEROS = b"\0" * 100
_MODE = b"0000644\0" + b"0000000\0" * 2  # user, group
_TIME = b"\0" + b"0" * 11 + b"\0"  # behind the size's last byte
_REST = b"\0 0" + b"\0" * 100 + b"ustar\x0000" + b"\0" * 247  # type (a file), link, magic, ...
_HEADER_SUM = sum(_MODE + _TIME + _REST[2:]) + 8 * ord(" ")  # the checksum itself counts as spaces


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


def sample_sizes(index: CocoIndex, positions: Iterable[int]) -> list[int]:
    """Returns about how many bytes each of these samples takes in a tar."""
    return [
        _image_size(index.image_file(i)) + index.annotation_bytes(i) + 4 * BLOCK for i in positions
    ]


def write_shard(
    folder: Path | None,
    plan: ShardPlan,
    index: CocoIndex,
    progress: Callable[[int], object] = lambda _: None,
) -> Written:
    """Writes one shard and its index into a folder; neither has its name before it is whole.

    Args:
        folder: exists; None to read and check everything without writing it.
        plan: what goes into the shard.
        index: the split that the plan is of.
        progress: called with the number of images done since the last call.

    Returns:
        What was written; no shard if none of the images can be used.
    """
    written = Written()
    rows: list[tuple[int, ...]] = []
    if folder is None:
        rows = _write_samples(None, plan, index, progress, written)
        written.images = len(rows)
        return written
    with contextlib.suppress(_NothingToWriteError), whole_file(folder / plan.name) as file:
        tar = _Tar(file)
        rows = _write_samples(tar, plan, index, progress, written)
        if not rows:
            raise _NothingToWriteError
        tar.append([b"\0" * (2 * BLOCK + -(tar.bytes + 2 * BLOCK) % _RECORD)])
    if not rows:
        return written
    written.images, written.bytes = len(rows), tar.bytes
    content = index_bytes(np.array(rows, INDEX_DTYPE))
    index_name = plan.name.removesuffix(".tar") + ".idx.npy"
    with whole_file(folder / index_name) as file:
        file.write(content)
    written.shards.append(
        Shard(
            name=plan.name,
            samples=len(rows),
            bytes=tar.bytes,
            sha256=tar.sha256.hexdigest(),
            index=index_name,
            index_sha256=hashlib.sha256(content).hexdigest(),
        )
    )
    return written


class _NothingToWriteError(Exception):
    """None of a shard's images can be used: its temporary file goes."""


class _Tar:
    """A tar that is being written, its length and its checksum so far."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file.fileno()
        self.bytes = 0
        self.sha256 = hashlib.sha256()

    def append(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Writes the pieces with as few system calls as can be."""
        for piece in pieces:
            self.sha256.update(piece)
        start = self.bytes
        self.bytes += sum(map(len, pieces))
        left = [memoryview(piece) for piece in pieces]
        while left:
            done = os.writev(self._file, left[:_PIECES])
            while left and done >= len(left[0]):  # a signal or a quota may cut a write short
                done -= len(left.pop(0))
            if done:
                left[0] = left[0][done:]
        if hasattr(os, "posix_fadvise"):
            # Linux begins to write back what it is told not to keep: fsync has less to wait for.
            os.posix_fadvise(self._file, start, self.bytes - start, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True, slots=True)
class _Image:
    """An image file that was read and can be used."""

    position: int
    key: str
    data: memoryview
    extension: str


def _write_samples(
    tar: _Tar | None,
    plan: ShardPlan,
    index: CocoIndex,
    progress: Callable[[int], object],
    written: Written,
) -> list[tuple[int, ...]]:
    """Appends the samples of a plan, some at a time; returns their rows of the index."""
    rows: list[tuple[int, ...]] = []
    buffer = memoryview(bytearray(_AT_ONCE))
    done = 0
    collecting = gc.isenabled()
    gc.disable()  # thousands of small objects a second, none of them in a cycle
    try:
        while done < len(plan.samples):
            images, tried = _read_images(plan.samples[done:], index, buffer, written.problems)
            rows += _append(tar, images, index, written)
            done += tried
            progress(tried)
    finally:
        if collecting:
            gc.enable()
    return rows


def _read_images(
    samples: Sequence[tuple[int, str]], index: CocoIndex, buffer: memoryview, problems: Problems
) -> tuple[list[_Image], int]:
    """Reads images into a buffer until it is full.

    Returns:
        Those that can be used, and how many of the samples are done with.
    """
    images: list[_Image] = []
    filled = 0
    for tried, (position, key) in enumerate(samples):
        try:
            data = _read(index.image_file(position), buffer[filled:], bool(images))
            if data is None:
                return images, tried
            extension = _checked(data, index.size(position))
        except (OSError, ValueError) as error:
            reason = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else error
            problems.add(f"{reason} (image left out)", index.file_name(position))
            continue
        images.append(_Image(position, key, data, extension))
        filled += len(data)
    return images, len(samples)


def _append(
    tar: _Tar | None, images: list[_Image], index: CocoIndex, written: Written
) -> list[tuple[int, ...]]:
    """Appends samples whose images have been read; returns their rows of the index."""
    records = index.records([image.position for image in images], written.problems)
    rows: list[tuple[int, ...]] = []
    pieces: list[bytes | memoryview] = []
    small = b""  # what lies between two images, in one piece
    at = tar.bytes if tar else 0
    for image, record in zip(images, records, strict=True):
        data, text = image.data, orjson.dumps(record)
        image_at = at + BLOCK
        json_at = image_at + len(data) + -len(data) % BLOCK + BLOCK
        at = json_at + len(text) + -len(text) % BLOCK
        pieces += [small + tar_header(f"{image.key}.{image.extension}", len(data)), data]
        small = b"".join(
            [
                b"\0" * (-len(data) % BLOCK),
                tar_header(f"{image.key}.json", len(text)),
                text,
                b"\0" * (-len(text) % BLOCK),
            ]
        )
        width, height, image_id = record["width"], record["height"], record["image_id"]
        sums = checksum(data), checksum(text)
        rows.append((image_at, len(data), json_at, len(text), width, height, image_id, *sums))
        written.instances += len(record["annotations"])
        written.crowd += sum(annotation["iscrowd"] for annotation in record["annotations"])
    if tar:
        tar.append([*pieces, small])
    return rows


def tar_header(name: str, size: int) -> bytes:
    """Returns the ustar header of a file: POSIX.1-1988, all but name and size constant."""
    if len(name) > 100 or size >= 8**11:
        raise ValueError(f"{name} ({size} bytes) does not fit a ustar header")
    start, length = name.encode("ascii"), b"%011o" % size
    checksum = b"%06o" % (_HEADER_SUM + sum(start) + sum(length))
    return b"".join([start, _ZEROS[len(start) :], _MODE, length, _TIME, checksum, _REST])


def _read(path: str, buffer: memoryview, may_wait: bool) -> memoryview | None:
    """Reads a file into a buffer, or into one of its own if that is too small.

    Returns:
        The content; None if the buffer is too small and the file may wait for an empty one.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        if size > len(buffer):
            if may_wait:
                return None
            buffer = memoryview(bytearray(size))
        done = 0
        while done < size:
            count = os.readv(file, [buffer[done:size]])
            if not count:
                raise ValueError("changed while it was read")
            done += count
        return buffer[:size]
    finally:
        os.close(file)


def _checked(data: memoryview, declared: tuple[int, int]) -> str:
    """Returns the extension of an image that can be used; ValueError says why it cannot."""
    if len(data) >= 2**32:
        raise ValueError("image file of 4 GiB or more")  # the index has 32 bits for it
    extension, size = images.inspect(data)
    if size != declared and images.shown_size(data) != declared:
        raise ValueError("width and height are not the picture's")
    return extension


def _image_size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return 0  # what is wrong with it is said when it is read
