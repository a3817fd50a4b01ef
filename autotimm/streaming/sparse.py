"""Sparse files of the cache, which hold those samples of a shard that were asked for.

    <sha256 of the tar>.part     as long as the tar; each sample lies where it lies in the tar

Nothing says which ranges are filled: a reader compares the checksum of each sample anyway, and what
is missing, cut off by a kill or damaged is fetched and written again. So any number of processes
may write to a file, in any order. Invariant: all cached files together stay below the cache's
limit, because a process counts what it is about to write before it does.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Collection
from pathlib import Path

from autotimm.files.atomic import FULL
from autotimm.streaming.cache import ROOM, Cache, RemoteFile, in_use
from autotimm.structures import InputError

_PAGE = 4096  # bytes by which a file grows on a disk
_LOOK = 16  # bytes: no image or record begins with as many zeros
_MOST_CLAIMED = 64 << 20  # bytes
_PARTS = 1024  # of the limit, of which a process claims one at a time
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class Room:
    """The room in a cache that this process has claimed and not used up.

    A file of the claimed size, which the process has locked, makes others count it.

    Args:
        cache: the cache.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache, self._left = cache, 0
        self._held = contextlib.ExitStack()
        self._claim: Path | None = None

    def take(self, size: int, keep: Collection[str]) -> bool:
        """Takes room for ``size`` bytes; removes the least recently used files if necessary.

        Args:
            size: bytes.
            keep: names of cached files to remove last.

        Returns:
            Whether there is room.
        """
        if self._cache.limit is None:
            return True
        if self._left < size:
            self._renew(self._cache.limit, size, keep)
        if self._left < size:
            return False
        self._left -= size
        return True

    def _renew(self, limit: int, size: int, keep: Collection[str]) -> None:
        claim = self._claim = self._claim or self._locked()
        with self._cache.lock(ROOM):
            self._resize(claim, 0)
            wanted = max(size, min(limit // _PARTS, _MOST_CLAIMED))
            over = self._cache.total() + wanted - limit
            if over <= 0 or self._cache.remove(over, keep, urgent=True) >= over:
                self._resize(claim, wanted)

    def _resize(self, claim: Path, size: int) -> None:
        with claim.open("ab") as file:
            file.truncate(size)
        self._left = size

    def _locked(self) -> Path:
        number = 0
        while True:
            name = f"{hashlib.sha256(f'claim {number}'.encode()).hexdigest()}.part"
            if self._held.enter_context(self._cache.lock(name, wait=False)):
                return self._cache.folder / f".{name}.claim.tmp"
            number += 1  # another process has this one


class SparseFile:
    """A sparse file of the cache; it stays open as long as the object lives.

    Args:
        cache: the cache.
        file: the tar, with the suffix ".part".

    Raises:
        InputError: the file cannot be opened.
    """

    def __init__(self, cache: Cache, file: RemoteFile) -> None:
        self._cache, self._file, self._fd = cache, file, -1
        self._path = cache.folder / file.name
        self._writable = True
        self._open()

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def read(self, start: int, end: int) -> memoryview:
        """Reads bytes, whether they are filled or not; none that cannot be read."""
        with contextlib.suppress(OSError):  # of a disk that fails: they are fetched again
            return memoryview(os.pread(self._fd, end - start, start))
        return memoryview(b"")

    def may_hold(self, start: int) -> bool:
        """Whether something is filled from ``start`` on; what, only its checksum tells."""
        return any(self.read(start, start + _LOOK))

    def write(self, start: int, data: memoryview, room: Room, keep: Collection[str]) -> None:
        """Fills a range, if there is room for it.

        Raises:
            InputError: the disk fails, or is full and the cache has no limit or nothing to remove.
        """
        pages = (start + len(data) + _PAGE - 1) // _PAGE - start // _PAGE
        if not self._writable or not room.take(pages * _PAGE, {*keep, self._file.name}):
            return
        if not os.fstat(self._fd).st_nlink:  # removed for room
            self._open()
        try:
            self._fill(start, data)
        except OSError as error:
            if error.errno not in FULL:
                raise self._unusable(error) from None
            self._cache.make_room(self._file, keep, urgent=True)
            with contextlib.suppress(OSError):  # it is fetched again another time
                self._fill(start, data)

    def _fill(self, start: int, data: memoryview) -> None:
        while data:
            count = os.pwrite(self._fd, data, start)
            start, data = start + count, data[count:]

    def _open(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        size = self._file.size or 0
        in_use(self._path, size)  # checks that it is a file, and sets its time of last use
        try:
            self._cache.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                if error.errno not in _READ_ONLY:
                    raise
                self._fd, self._writable = os.open(self._path, os.O_RDONLY), False
            if self._writable and os.fstat(self._fd).st_size != size:
                os.ftruncate(self._fd, size)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> InputError:
        return InputError(f"{self._cache.folder}: cannot be used as a cache: {error.strerror}")
