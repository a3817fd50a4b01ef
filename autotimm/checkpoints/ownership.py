"""Which checkpoints of a folder a run may remove, because no other process counts on them.

Two starts can share a folder: a job that is started again while its first start lives on, on this
machine or another, or two trainers with a logger of the same version. Neither may remove what the
other would resume from. No clock and no process number tells them apart, which other machines
would not know: a lock does, which the system gives up when its process ends, also over NFS.

Invariants: a file is removed only if this process wrote it and nobody has replaced it, or if it was
there when this process found itself alone. Where the file system has no locks, it counts as alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from autotimm.checkpoints.storage import COMPLETE

LOCK = ".lock"
"""The name of the locked file in a run's folder; it is removed at the end of the training."""
_HELD = (errno.EACCES, errno.EAGAIN)
_TAIL = 64  # bytes at the end of a checkpoint, which hold its checksum


class Ownership:
    """What this process may remove from a folder of checkpoints. Only the first rank uses it."""

    def __init__(self) -> None:
        self._marks: dict[Path, bytes] = {}
        self._lock: IO[bytes] | None = None

    def enter(self, folder: Path, there: Iterable[str]) -> bool:
        """Lock a folder of checkpoints for this process.

        Args:
            folder: of the checkpoints, in that of the run.
            there: names of the checkpoints that earlier starts of the run wrote, which this process
                may remove if it is alone.

        Returns:
            Whether no other process has locked it.
        """
        self.leave()
        alone = self._take(folder.parent / LOCK)
        if alone:
            for name in there:
                self.wrote(folder / name)
        return alone

    def wrote(self, path: Path) -> None:
        """Remember that this process wrote a checkpoint."""
        with contextlib.suppress(OSError):  # what cannot be read again is not removed
            self._marks[path] = _mark(path)

    def may_remove(self, path: Path) -> bool:
        """Whether a checkpoint is this process's, and is what it was."""
        try:
            return self._marks.pop(path, None) == _mark(path)
        except OSError:
            return False

    def leave(self) -> None:
        """Give up the lock, and what was remembered."""
        self._marks = {}
        if self._lock is not None:
            with contextlib.suppress(OSError):
                Path(self._lock.name).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def _take(self, path: Path) -> bool:
        while True:
            try:
                file = path.open("ab")
            except OSError:  # no folder yet, or one that saving will complain of
                return True
            try:
                # Of the process: forked data workers, which may outlive it, do not hold it.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.close()
                return error.errno not in _HELD
            if _is_at(file, path):
                self._lock = file
                return True
            file.close()  # its last holder has removed it since it was opened


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _mark(path: Path) -> bytes:
    """Bytes that another checkpoint of the same name does not have."""
    if path.is_dir():
        return (path / COMPLETE).read_bytes()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL))
        return b"%d " % size + file.read()
