"""A tar that is being written: headers, and a buffer that is hashed and written as it fills."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Executor, Future
from typing import BinaryIO

from autotimm.format.tar import BLOCK, RECORD

_BUFFER = 2 << 20  # bytes of a tar that are filled before they are hashed and written

# The ustar header of a file, but for name, size and checksum.
_ZEROS = b"\0" * 100
_MODE = b"0000644\0" + b"0000000\0" * 2  # user, group
_TIME = b"\0" + b"0" * 11 + b"\0"  # behind the size's last byte
_REST = b"\0 0" + b"\0" * 100 + b"ustar\x0000" + b"\0" * 247  # type (a file), link, magic, ...
_HEADER_SUM = sum(_MODE + _TIME + _REST[2:]) + 8 * ord(" ")  # the checksum itself counts as spaces


class TarWriter:
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
                self._write(self._file, content)
            else:
                self._at_work = self._thread.submit(self._write, self._file, content)
                self._buffer, self._other = self._other, self._buffer
        if last and self._at_work is not None:
            self._at_work.result()
        self._filled = 0

    def end(self) -> None:
        """Adds the zeros that end a tar, and waits until all of it is written."""
        size = 2 * BLOCK + -(self.bytes + 2 * BLOCK) % RECORD
        self.room(size)[:] = bytes(size)
        self.add(size)
        self.flush(last=True)

    def _write(self, file: BinaryIO, content: memoryview) -> None:
        self.sha256.update(content)
        start, end = self._written, self._written + len(content)
        while self._written < end:  # a signal or a quota may cut a write short
            # Asked for each time: that of a closed file, which a second Ctrl-C leads to, may be
            # another file's by now.
            self._written += os.write(file.fileno(), content[self._written - start :])
        if hasattr(os, "posix_fadvise"):
            # With this advice Linux begins to write back: fsync has less to wait for.
            os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)


def tar_header(name: str, size: int) -> bytes:
    """Returns the ustar header of a file: POSIX.1-1988, all but name and size constant."""
    if len(name) > 100 or size >= 8**11:
        raise ValueError(f"{name} ({size} bytes) does not fit a ustar header")
    start, length = name.encode("ascii"), b"%011o" % size
    checksum = b"%06o" % (_HEADER_SUM + sum(start) + sum(length))
    return b"".join([start, _ZEROS[len(start) :], _MODE, length, _TIME, checksum, _REST])
