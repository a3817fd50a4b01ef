"""The index of a shard: the place of each sample in the tar, and checksums of its bytes.

Invariants: one row a sample, in the order of the tar; every member has a checksum, so that a reader
notices a flipped bit; input is not trusted: this module loads NumPy files without pickle, and
checks that offsets lie inside the shard.
"""

from __future__ import annotations

import operator
import re
from io import BytesIO

import numpy as np
import orjson
import xxhash

from autotimm.format.manifest import Shard
from autotimm.format.tar import members
from autotimm.structures import InputError

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


def checksum(data: bytes | bytearray | memoryview) -> int:
    """The checksum of a member's bytes in an index: XXH3, 64 bits."""
    return xxhash.xxh3_64_intdigest(data)


def index_bytes(index: np.ndarray) -> bytes:
    """Returns the content of an index file."""
    buffer = BytesIO()
    np.save(buffer, index, allow_pickle=False)
    return buffer.getvalue()


# The header that np.save writes before the rows. Parsing it with NumPy would take most of the time
# that reading a thousand indices takes.
_HEADER = re.compile(
    re.escape(index_bytes(np.empty(0, INDEX_DTYPE)).partition(b"(0,)")[0])
    + rb"\(([0-9]{1,19}),\), \} *\n"
)


def read_index(content: bytes | memoryview, shard: Shard) -> np.ndarray:
    """Reads an index file, and checks that it fits its shard.

    Returns:
        [shard.samples] of INDEX_DTYPE.

    Raises:
        InputError: the index is damaged, or belongs to another shard.
    """
    usual = _HEADER.match(content)
    try:
        if usual and usual.end() + int(usual[1]) * INDEX_DTYPE.itemsize == len(content):
            index = np.frombuffer(content, INDEX_DTYPE, offset=usual.end())
        else:
            index = np.load(BytesIO(content), allow_pickle=False)
    # NumPy parses the header as Python text, and raises errors of any kind if it is damaged.
    except Exception as error:
        raise InputError(f"{shard.index}: not an index of a shard: {error}") from None
    if not isinstance(index, np.ndarray) or index.dtype != INDEX_DTYPE:
        raise InputError(f"{shard.index}: not an index of a shard: run autotimm-shard again")
    ends = np.maximum(
        index["image_offset"] + index["image_bytes"], index["json_offset"] + index["json_bytes"]
    )
    starts = np.maximum(index["image_offset"], index["json_offset"])
    if index.shape != (shard.samples,) or max(ends.max(initial=0), starts.max(initial=0)) > (
        shard.bytes
    ):
        raise InputError(f"{shard.index}: does not fit {shard.name}: run autotimm-shard again")
    return index


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
    rows = []
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
            rows.append(_row(tar, waiting["image"], waiting["json"]))
            waiting = {}
    if waiting:
        raise InputError(f"sample '{key}' of the shard is not one image and one .json")
    return np.array(rows, INDEX_DTYPE)


def _row(tar: memoryview | bytes, image: tuple[str, int, int], text: tuple[str, int, int]) -> tuple:
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
    return (image[1], image[2], text[1], text[2], *known, *sums)
