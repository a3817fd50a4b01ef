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
        start, size, at, length, _, _, _, image_sum, text_sum = self._rows[index].item()
        first, last = min(start, at), max(start + size, at + length)
        if last - first <= size + length + _GAP:
            both = memoryview(os.pread(self._fd, last - first, first))
            image = both[start - first : start - first + size]
            text = both[at - first : at - first + length]
        else:
            image = memoryview(os.pread(self._fd, size, start))
            text = memoryview(os.pread(self._fd, length, at))
        same = checksum(image) == image_sum and checksum(text) == text_sum
        return (image, text) if same else None

    def record(self, index: int) -> memoryview | None:
        """Reads the bytes of a record alone; None if their checksum differs."""
        _, _, at, length, _, _, _, _, text_sum = self._rows[index].item()
        text = memoryview(os.pread(self._fd, length, at))
        return text if checksum(text) == text_sum else None
