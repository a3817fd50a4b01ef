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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import orjson

from autotimm.coco.checks import Problems
from autotimm.coco.join import Index
from autotimm.files.atomic import whole_file
from autotimm.format.index import INDEX_DTYPE, checksum, index_bytes
from autotimm.format.manifest import BLOCK, Shard
from autotimm.images import inspect as images
from autotimm.images.decode import deep_pixels
from autotimm.images.depth import Depths
from autotimm.images.orientation import orientation
from autotimm.structures import Record

_RECORD = 20 * BLOCK  # tar files end on a multiple of this
_KEY = 80  # characters; a ustar name has room for 100 with the extension
_BUFFER = 2 << 20  # bytes of a tar that are filled before they are hashed and written
_AS_STORED = (
    "picture's orientation does not show in its width and height (taken as stored; one that was "
    "annotated upright has to be stored upright)"
)

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
    """What was written, and what was odd.

    Attributes:
        crowd: part of the instances.
        ignored: part of the instances too, none of it crowd.
        untrained: the names of the split's categories that have such instances only.
        depths: the images of more than 8 bits a channel.
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


def sample_sizes(index: Index, positions: Iterable[int]) -> list[int]:
    """Returns about how many bytes each of these samples takes in a tar."""
    return [
        _image_size(index.image_file(i)) + index.annotation_bytes(i) + 4 * BLOCK for i in positions
    ]


def write_shard(
    folder: Path | None,
    plan: ShardPlan,
    index: Index,
    progress: Callable[[int], object] = lambda _: None,
    thread: bool = False,
) -> Written:
    """Writes one shard and its index into a folder; neither has its name before it is whole.

    Args:
        folder: exists; None to read and check everything without writing it.
        plan: what goes into the shard.
        index: the split that the plan is of.
        progress: called with the number of images done since the last call.
        thread: hash and write in a thread of its own; of use where a CPU is free for it.

    Returns:
        What was written; no shard if none of the images can be used.
    """
    written = Written()
    rows: list[tuple[int, ...]] = []
    if folder is None:
        rows = _write_samples(_Tar(None, None), plan, index, progress, written)
        written.images = len(rows)
        return written
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(_NothingToWriteError))
        file = stack.enter_context(whole_file(folder / plan.name))
        # Left before the file is closed: a thread must not write to a descriptor of another file.
        pool = stack.enter_context(ThreadPoolExecutor(1)) if thread else None
        tar = _Tar(file, pool)
        rows = _write_samples(tar, plan, index, progress, written)
        if not rows:
            raise _NothingToWriteError
        end = 2 * BLOCK + -(tar.bytes + 2 * BLOCK) % _RECORD
        tar.room(end)[:] = bytes(end)
        tar.add(end)
        tar.flush(last=True)
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
    """A tar that is being written: filled in memory, then hashed and written a buffer at a time.

    In a thread, this is done with one buffer while the other is filled. Hashing one long stretch
    lets go of the interpreter once; many short ones would each have to wait to get it back.

    Args:
        file: to write to; None to write nothing.
        thread: that hashes and writes; None to do it here.
    """

    def __init__(self, file: BinaryIO | None, thread: Executor | None) -> None:
        self._file, self._thread = file, thread
        self._buffer, self._other = (memoryview(bytearray(_BUFFER)) for _ in range(2))
        self._filled = 0
        self._written = 0
        self._at_work: Future[None] | None = None
        self.bytes = 0
        self.sha256 = hashlib.sha256()

    def room(self, size: int) -> memoryview:
        """The next bytes of the tar, to be filled; they count once they are added."""
        if size > len(self._buffer) - self._filled:
            self.flush()
            if len(self._buffer) != max(size, _BUFFER):  # no longer than it has to be so large
                self._buffer = memoryview(bytearray(max(size, _BUFFER)))
        return self._buffer[self._filled : self._filled + size]

    def add(self, size: int) -> None:
        """Makes the bytes that were filled part of the tar."""
        self._filled += size
        self.bytes += size

    def flush(self, last: bool = False) -> None:
        """Hashes and writes what was added, or begins to."""
        if self._at_work is not None:
            self._at_work.result()
        if self._file is not None and self._filled:
            content = self._buffer[: self._filled]
            if self._thread is None:
                self._put(self._file, content)
            else:
                self._at_work = self._thread.submit(self._put, self._file, content)
                self._buffer, self._other = self._other, self._buffer
        if last and self._at_work is not None:
            self._at_work.result()
        self._filled = 0

    def _put(self, file: BinaryIO, content: memoryview) -> None:
        self.sha256.update(content)
        start, end = self._written, self._written + len(content)
        while self._written < end:  # a signal or a quota may cut a write short
            # Asked for each time: that of a closed file, which a second Ctrl-C leads to, may be
            # another file's by now.
            self._written += os.write(file.fileno(), content[self._written - start :])
        if hasattr(os, "posix_fadvise"):
            # Linux begins to write back what it is told not to keep: fsync has less to wait for.
            os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)


def _write_samples(
    tar: _Tar,
    plan: ShardPlan,
    index: Index,
    progress: Callable[[int], object],
    written: Written,
) -> list[tuple[int, ...]]:
    """Appends the samples of a plan; returns the index's rows of those whose image can be used."""
    rows: list[tuple[int, ...]] = []
    collecting = gc.isenabled()
    gc.disable()  # thousands of small objects a second, none of them in a cycle
    try:
        for position, key in plan.samples:
            problems = Problems()
            record = index.record(position, problems)
            try:
                path = index.image_file(position)
                rows.append(_append_sample(tar, path, key, record, problems, written.depths))
            except (_ReadError, ValueError) as error:
                # Whatever is odd about its annotations is no loss, but that they are gone is.
                name = index.file_name(position)
                written.problems.add(f"{error} (image left out)", name)
                for _ in (*record["annotations"], *record.get("unmasked", ())):
                    written.problems.add("annotation of an image that is left out (left out)", name)
            else:
                written.problems.update(problems)
                written.instances += len(record["annotations"])
                written.crowd += sum(a["iscrowd"] for a in record["annotations"])
                written.ignored += sum(
                    "ignore" in a and not a["iscrowd"] for a in record["annotations"]
                )
            progress(1)
    finally:
        if collecting:
            gc.enable()
    return rows


def _append_sample(
    tar: _Tar, path: str, key: str, record: Record, problems: Problems, depths: Depths
) -> tuple[int, ...]:
    """Appends an image and its record; returns their row of the index.

    What is odd about the image is added to ``problems``, and one of more than 8 bits to ``depths``.

    Raises:
        _ReadError: the image cannot be read.
        ValueError: it cannot be used; the message says why.
    """
    text = orjson.dumps(record)
    text_room = len(text) + -len(text) % BLOCK
    with _opened(path) as (file, size):
        image_room = size + -size % BLOCK
        room = tar.room(2 * BLOCK + image_room + text_room)
        image = room[BLOCK : BLOCK + size]
        _fill(file, image)
    extension = _checked(image, record, problems, depths)
    pieces = [
        b"\0" * (image_room - size),
        tar_header(f"{key}.json", len(text)),
        text,
        b"\0" * (text_room - len(text)),
    ]
    room[:BLOCK] = tar_header(f"{key}.{extension}", size)
    room[BLOCK + size :] = b"".join(pieces)
    image_at = tar.bytes + BLOCK
    json_at = image_at + image_room + BLOCK
    tar.add(len(room))
    shape = record["width"], record["height"], record["image_id"]
    return (image_at, size, json_at, len(text), *shape, checksum(image), checksum(text))


def tar_header(name: str, size: int) -> bytes:
    """Returns the ustar header of a file: POSIX.1-1988, all but name and size constant."""
    if len(name) > 100 or size >= 8**11:
        raise ValueError(f"{name} ({size} bytes) does not fit a ustar header")
    start, length = name.encode("ascii"), b"%011o" % size
    checksum = b"%06o" % (_HEADER_SUM + sum(start) + sum(length))
    return b"".join([start, _ZEROS[len(start) :], _MODE, length, _TIME, checksum, _REST])


class _ReadError(Exception):
    """An image file cannot be read; other errors of the system concern what is written."""


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[int, int]]:
    """An image file's descriptor and size."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise _ReadError(f"cannot be read: {error.strerror}") from None
    try:
        try:
            size = os.fstat(file).st_size
        except OSError as error:  # of a file system on a network, say
            raise _ReadError(f"cannot be read: {error.strerror}") from None
        yield file, size
    finally:
        os.close(file)


def _fill(file: int, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        try:
            count = os.readv(file, [buffer[done:]])
        except OSError as error:
            raise _ReadError(f"cannot be read: {error.strerror}") from None
        if not count:
            raise ValueError("changed while it was read")
        done += count


def _checked(image: memoryview, record: Record, problems: Problems, depths: Depths) -> str:
    """Returns the extension of an image that can be used; ValueError says why it cannot."""
    if len(image) >= 2**32:
        raise ValueError("image file of 4 GiB or more")  # the index has 32 bits for it
    declared, name = (record["width"], record["height"]), record["file_name"]
    extension, size = images.inspect(image)
    if size != declared and images.shown_size(image) != declared:
        raise ValueError("width and height are not the picture's")
    which = orientation(image) if size == declared else 1
    if which != 1 and (which < 5 or size[0] == size[1]):
        problems.add(_AS_STORED, name)
    deep = deep_pixels(image)
    if deep is not None:
        depths.add(deep, name)
    return extension


def _image_size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return 0  # what is wrong with it is said when it is read
