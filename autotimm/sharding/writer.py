"""Writes one shard of a plan (``plan.py``), whole: its tar (``tar_writer.py``) and its index.

Invariants: a shard's bytes are a pure function of the plan and the files (no clock, no user, no
order of a file system in them), so who writes which shard when never shows. The image bytes are
the source's own. An image that cannot be used is left out and counted.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson

from autotimm.coco.checks import Problems
from autotimm.coco.join import Index
from autotimm.files.atomic import whole_file
from autotimm.format.index import (
    INDEX_DTYPE,
    category_pairs,
    checksum,
    index_bytes,
    trained_categories,
)
from autotimm.format.manifest import Shard
from autotimm.format.tar import BLOCK
from autotimm.images.depths import Depths
from autotimm.images.usable import usable
from autotimm.sharding.outcome import Written
from autotimm.sharding.plan import ShardPlan
from autotimm.sharding.tar_writer import TarWriter, tar_header
from autotimm.structures import Record


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
    rows: list[_Row] = []
    if folder is None:
        rows = _write_samples(TarWriter(None, None), plan, index, progress, written)
        written.images = len(rows)
        return written
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(_NothingToWriteError))
        file = stack.enter_context(whole_file(folder / plan.name))
        # Left before the file is closed: a thread must not write to a descriptor of another file.
        pool = stack.enter_context(ThreadPoolExecutor(1)) if thread else None
        tar = TarWriter(file, pool)
        rows = _write_samples(tar, plan, index, progress, written)
        if not rows:
            raise _NothingToWriteError
        tar.end()
    if not rows:
        return written
    written.images, written.bytes = len(rows), tar.bytes
    pairs = category_pairs(categories for _, categories in rows)
    content = index_bytes(np.array([row for row, _ in rows], INDEX_DTYPE), pairs)
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
            index_size=len(content),
        )
    )
    return written


_Row = tuple[tuple[int, ...], set[int]]  # of the index, and the sample's categories
_IMAGE_SUM = -2  # where a row of the index has the checksum of the image file


class _NothingToWriteError(Exception):
    """None of a shard's images can be used: its temporary file goes."""


def _write_samples(
    tar: TarWriter,
    plan: ShardPlan,
    index: Index,
    progress: Callable[[int], object],
    written: Written,
) -> list[_Row]:
    """Appends the samples of a plan; returns the rows of those whose image can be used."""
    rows: list[_Row] = []
    collecting = gc.isenabled()
    gc.disable()  # thousands of small objects a second, none of them in a cycle
    try:
        for position, key in plan.samples:
            problems = Problems()
            record = index.record(position, problems)
            try:
                path = index.image_file(position)
                row = _append_sample(tar, path, key, record, problems, written.depths)
                rows.append((row, trained_categories(record["annotations"])))
                written.checksums.append(row[_IMAGE_SUM])
            except (_ReadError, ValueError) as error:
                written.checksums.append(0)
                # Whatever is odd about its annotations is no loss, but that they are gone is.
                name = index.file_name(position)
                written.problems.add(f"{error} (image left out)", name)
                for _ in (*record["annotations"], *record.get("unmasked", ())):
                    written.problems.add("annotation of an image that is left out (left out)", name)
            else:
                written.problems.update(problems)
                written.instances += len(record["annotations"])
                for one in record["annotations"]:
                    if one["iscrowd"]:
                        written.crowd += 1
                    elif "ignore" in one:
                        written.ignored += 1
            progress(1)
    finally:
        if collecting:
            gc.enable()
    return rows


def _append_sample(
    tar: TarWriter, path: str, key: str, record: Record, problems: Problems, depths: Depths
) -> tuple[int, ...]:
    """Appends an image and its record; returns their row of the index.

    What is odd about the image is added to ``problems``, and one of more than 8 bits to ``depths``.

    Raises:
        _ReadError: the image cannot be read.
        ValueError: it cannot be used; the message says why.
    """
    text = orjson.dumps(record)
    text_room = len(text) + -len(text) % BLOCK
    with _image_file(path) as (file, size):
        image_room = size + -size % BLOCK
        room = tar.room(2 * BLOCK + image_room + text_room)
        image = room[BLOCK : BLOCK + size]
        _fill(file, image)
    extension = _checked_image(image, record, problems, depths)
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


class _ReadError(Exception):
    """An image file cannot be read; other errors of the system concern what is written."""


@contextlib.contextmanager
def _image_file(path: str) -> Iterator[tuple[int, int]]:
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


def _checked_image(image: memoryview, record: Record, problems: Problems, depths: Depths) -> str:
    """Returns the extension of an image that can be used; ValueError says why it cannot."""
    if len(image) >= 2**32:
        raise ValueError("image file of 4 GiB or more")  # the index has 32 bits for it
    name = record["file_name"]
    declared = record["width"], record["height"]
    return usable(image, declared, name, depths, lambda kind: problems.add(kind, name))
