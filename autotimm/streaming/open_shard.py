"""A shard that is open: the bytes of a sample, checked, with one ``pread``.

Mapping the file would cost more: page faults take longer than the copy where the system has the
file in small pages, and a file that shrinks would end the process rather than raise an error.
"""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np

from autotimm.format.index import checksum

_GAP = 1 << 16  # bytes between image and record that are read rather than skipped


class OpenShard:
    """A tar and its index, open until nobody has it any more.

    Args:
        file: of which the descriptor is taken over; it may be closed.
        rows: the index, [samples] of INDEX_DTYPE.
    """

    __slots__ = ("_fd", "_rows")

    def __init__(self, file: BinaryIO, rows: np.ndarray) -> None:
        self._fd, self._rows = os.dup(file.fileno()), rows

    def __del__(self) -> None:
        os.close(self._fd)

    def sample(self, index: int) -> tuple[memoryview, memoryview] | None:
        """The bytes of an image and its record; None if they are not what their checksums say.

        Raises:
            OSError: they cannot be read.
        """
        # All fields at once as plain numbers: one by one they would cost more than the reading.
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
        """As :meth:`sample`, the record alone, whatever has become of the image."""
        _, _, at, length, _, _, _, _, text_sum = self._rows[index].item()
        text = memoryview(os.pread(self._fd, length, at))
        return text if checksum(text) == text_sum else None
