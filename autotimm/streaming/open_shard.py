"""An open shard: reads the bytes of a sample with one ``pread``, and compares their checksums.

Memory-mapping the file would be slower, because page faults on small pages take longer than the
copy, and less safe, because a file that shrinks would kill the process instead of raising an error.
"""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np

from autotimm.format.index import checksum

_GAP = 1 << 16  # bytes; with a larger gap between image and record, they are read separately


class OpenShard:
    """A tar and its index; the file stays open as long as the object lives.

    Args:
        file: the tar. The object duplicates its descriptor, so the caller may close it.
        rows: the index, [samples] of INDEX_DTYPE.
    """

    __slots__ = ("_fd", "_rows")

    def __init__(self, file: BinaryIO, rows: np.ndarray) -> None:
        self._fd, self._rows = os.dup(file.fileno()), rows

    def __del__(self) -> None:
        os.close(self._fd)

    def sample(self, index: int) -> tuple[memoryview, memoryview] | None:
        """Reads the bytes of an image and its record; None if a checksum differs.

        Raises:
            OSError: the file cannot be read.
        """
        # One item() for all fields: converting them one by one takes longer than the read.
        row = self._rows[index].item()
        if (both := span(row)) is not None:
            return parts(row, memoryview(os.pread(self._fd, both[1] - both[0], both[0])), both[0])
        start, size, at, length, *_ = row
        image = memoryview(os.pread(self._fd, size, start))
        return _same(row, image, memoryview(os.pread(self._fd, length, at)))

    def record(self, index: int) -> memoryview | None:
        """Reads the bytes of a record alone; None if their checksum differs."""
        _, _, at, length, _, _, _, _, text_sum = self._rows[index].item()
        text = memoryview(os.pread(self._fd, length, at))
        return text if checksum(text) == text_sum else None


def span(row: tuple[int, ...]) -> tuple[int, int] | None:
    """Where the bytes of a sample begin and end in the tar, from its row of the index.

    None if image and record lie so far apart that they have to be read one by one.
    """
    start, size, at, length, *_ = row
    first, last = min(start, at), max(start + size, at + length)
    return (first, last) if last - first <= size + length + _GAP else None


def parts(
    row: tuple[int, ...], data: memoryview, first: int
) -> tuple[memoryview, memoryview] | None:
    """Image and record of a sample in a part of the tar; None if a checksum differs.

    Args:
        row: of the sample in the index.
        data: bytes of the tar.
        first: where in the tar they begin.
    """
    start, size, at, length, *_ = row
    image, text = data[start - first :][:size], data[at - first :][:length]
    return _same(row, image, text)


def _same(
    row: tuple[int, ...], image: memoryview, text: memoryview
) -> tuple[memoryview, memoryview] | None:
    *_, image_sum, text_sum = row
    return (image, text) if checksum(image) == image_sum and checksum(text) == text_sum else None
