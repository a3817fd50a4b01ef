"""The index of a shard: where each sample lies in the tar, checksums of its bytes, its categories.

An index file is two arrays of NumPy's format, one behind the other: a row of INDEX_DTYPE a sample,
and a row of PAIR_DTYPE for each category of which a sample has an instance to train on. The second
array is missing before version 4 of the manifest.

Invariants: one row a sample, in the order of the tar; every member has a checksum, so that a reader
notices a flipped bit; input is not trusted: this module loads NumPy files without pickle, and
checks that offsets lie inside the shard.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import orjson
import xxhash

from autotimm.format.manifest import Shard
from autotimm.format.tar import members
from autotimm.structures import InputError, is_trained_on

INDEX_DTYPE = np.dtype(
    [
        ("image_offset", "<u8"),  # of the data, after the header, from the beginning of the tar
        ("image_bytes", "<u4"),
        ("json_offset", "<u8"),
        ("json_bytes", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("image_id", "<i8"),
        ("image_xxh3", "<u8"),
        ("json_xxh3", "<u8"),
    ]
)

PAIR_DTYPE = np.dtype([("sample", "<u4"), ("category_id", "<i8")])


def checksum(data: bytes | bytearray | memoryview) -> int:
    """The checksum of a member's bytes in an index: XXH3, 64 bits."""
    return xxhash.xxh3_64_intdigest(data)


def index_bytes(index: np.ndarray, pairs: np.ndarray | None = None) -> bytes:
    """Returns the content of an index file.

    Args:
        index: [samples] of INDEX_DTYPE.
        pairs: of PAIR_DTYPE, from ``category_pairs``; None for an index as version 3 has it.
    """
    buffer = BytesIO()
    for part in (index,) if pairs is None else (index, pairs):
        np.save(buffer, part, allow_pickle=False)
    return buffer.getvalue()


def most_bytes(shard: Shard) -> int:
    """The bytes after which an index file is not read on, since it cannot be that of the shard."""
    if shard.index_size is not None:
        return shard.index_size
    return shard.samples * INDEX_DTYPE.itemsize + 4096


def trained_categories(annotations: Iterable[Any]) -> set[int]:
    """The ids of the categories of which a record has an instance to train on."""
    return {one["category_id"] for one in annotations if is_trained_on(one)}


def category_pairs(categories: Iterable[Iterable[int]]) -> np.ndarray:
    """Joins the category ids of each sample of a shard, in its order, to an array of PAIR_DTYPE."""
    rows = [(sample, id_) for sample, ids in enumerate(categories) for id_ in sorted(ids)]
    return np.array(rows, PAIR_DTYPE)


# The header that np.save writes before the rows. Parsing it with NumPy would take most of the time
# that reading a thousand indices takes.
@cache
def _header() -> re.Pattern[bytes]:
    begin = index_bytes(np.empty(0, INDEX_DTYPE)).partition(b"(0,)")[0]
    return re.compile(re.escape(begin) + rb"\(([0-9]{1,19}),\), \} *\n")


def read_index(content: bytes | memoryview, shard: Shard) -> np.ndarray:
    """Reads an index file, and checks that it fits its shard.

    Returns:
        [shard.samples] of INDEX_DTYPE.

    Raises:
        InputError: the index is damaged, or belongs to another shard.
    """
    index = _first_array(content, shard)[0]
    ends = np.maximum(
        index["image_offset"] + index["image_bytes"], index["json_offset"] + index["json_bytes"]
    )
    starts = np.maximum(index["image_offset"], index["json_offset"])
    if index.shape != (shard.samples,) or max(ends.max(initial=0), starts.max(initial=0)) > (
        shard.bytes
    ):
        raise InputError(f"{shard.index}: does not fit {shard.name}: run autotimm-shard again")
    return index


def read_pairs(content: bytes | memoryview, shard: Shard) -> np.ndarray | None:
    """Reads which categories the samples of a shard have, from its index file.

    Returns:
        An array of PAIR_DTYPE; None if the index is of a version that has none.

    Raises:
        InputError: the index is damaged, or belongs to another shard.
    """
    end = _first_array(content, shard)[1]
    if end == len(content):
        return None
    try:
        pairs = np.load(BytesIO(content[end:]), allow_pickle=False)
    except Exception as error:  # of any kind, as in _first_array
        raise InputError(f"{shard.index}: not an index of a shard: {error}") from None
    if not isinstance(pairs, np.ndarray) or pairs.dtype != PAIR_DTYPE or pairs.ndim != 1:
        raise InputError(f"{shard.index}: not an index of a shard: run autotimm-shard again")
    if pairs["sample"].max(initial=0) >= max(shard.samples, 1):
        raise InputError(f"{shard.index}: does not fit {shard.name}: run autotimm-shard again")
    return pairs


def _first_array(content: bytes | memoryview, shard: Shard) -> tuple[np.ndarray, int]:
    """The rows of an index file, and where in it they end."""
    usual = _header().match(content)
    try:
        if usual and usual.end() + int(usual[1]) * INDEX_DTYPE.itemsize <= len(content):
            count = int(usual[1])
            end = usual.end() + count * INDEX_DTYPE.itemsize
            return np.frombuffer(content, INDEX_DTYPE, count, usual.end()), end
        buffer = BytesIO(content)
        index = np.load(buffer, allow_pickle=False)
    # NumPy parses the header as Python text, and raises errors of any kind if it is damaged.
    except Exception as error:
        raise InputError(f"{shard.index}: not an index of a shard: {error}") from None
    if not isinstance(index, np.ndarray) or index.dtype != INDEX_DTYPE:
        raise InputError(f"{shard.index}: not an index of a shard: run autotimm-shard again")
    return index, buffer.tell()


def build_index(tar: memoryview | bytes) -> np.ndarray:
    """Makes the index of a shard from its tar alone.

    Args:
        tar: the whole file.

    Returns:
        [samples] of INDEX_DTYPE, in the order of the tar.

    Raises:
        InputError: the tar is cut off or damaged, or its members are not pairs of an image and a
            record.
    """
    return scan_tar(tar)[0]


def scan_tar(tar: memoryview | bytes) -> tuple[np.ndarray, np.ndarray]:
    """Makes both arrays of an index: as ``build_index``, and the pairs of PAIR_DTYPE."""
    rows: list[tuple[int, ...]] = []
    categories: list[set[int]] = []
    waiting: dict[str, tuple[str, int, int]] = {}  # the members of the current sample
    key = ""
    for name, offset, size in members(memoryview(tar)):
        stem, _, extension = name.rpartition("/")[2].partition(".")
        stem = name[: len(name) - len(extension) - 1]
        if waiting and stem != key:
            raise InputError(f"sample '{key}' of the shard is not one image and one .json")
        key = stem
        waiting["json" if extension == "json" else "image"] = (name, offset, size)
        if len(waiting) == 2:
            row, found = _row(tar, waiting["image"], waiting["json"])
            rows.append(row)
            categories.append(found)
            waiting = {}
    if waiting:
        raise InputError(f"sample '{key}' of the shard is not one image and one .json")
    return np.array(rows, INDEX_DTYPE), category_pairs(categories)


def _row(
    tar: memoryview | bytes, image: tuple[str, int, int], text: tuple[str, int, int]
) -> tuple[tuple[int, ...], set[int]]:
    """The index's row of a sample, and its categories."""
    try:
        record = orjson.loads(memoryview(tar)[text[1] : text[1] + text[2]])
        known = [operator.index(record[key]) for key in ("width", "height", "image_id")]
        if not (0 < min(known[:2]) <= max(known[:2]) < 2**32 > max(image[2], text[2])):
            raise ValueError("out of range for a row")
        if not -(2**63) <= known[2] < 2**63:
            raise ValueError("more than 64 bits")
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{text[0]} of the shard is not the record of an image") from None
    sums = [checksum(memoryview(tar)[at : at + size]) for _, at, size in (image, text)]
    try:
        categories = trained_categories(record["annotations"])
        category_pairs([categories])
    except (ValueError, TypeError, KeyError, OverflowError):
        categories = set()  # a record whose annotations are damaged has its place all the same
    return (image[1], image[2], text[1], text[2], *known, *sums), categories
