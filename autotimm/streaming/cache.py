"""The cache folder: downloaded and verified files, shared by all processes of a machine.

Invariants: the name of a cached file is the sha256 of its content, and the cache renames a file
into place only after it has checked size and hash; so a cached file is never partial (but for the
files of ``sparse.py``, whose readers compare each sample), and two data sets whose shards have the
same names do not collide. One process downloads a file while the others wait for it. With a limit,
the cache removes the least recently used files first, and never any other file; a process that has
a removed file open can still read it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from autotimm.files import remote, urls
from autotimm.files.atomic import FULL, whole_file
from autotimm.files.retry import Retry
from autotimm.structures import InputError

_CACHED = re.compile(r"[0-9a-f]{64}\.(?:tar|npy|part)")
_UNFINISHED = re.compile(r"\.([0-9a-f]{64}\.(?:tar|npy|part))\..*\.tmp")
ROOM = "room"  # the lock that a process holds while it counts bytes and removes files
_WAIT = 0.05  # seconds between two attempts to make room


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on a server.

    Attributes:
        url: where the file is.
        sha256: of its content, hexadecimal.
        suffix: of its name in the cache: ".tar", ".npy", or ".part" for a tar with gaps.
        at_most: bytes after which a download stops.
        size: in bytes, if it is known.
        changed: called when a download has another content; raises an error if another file lies
            there for good.
    """

    url: str
    sha256: str
    suffix: str
    at_most: int
    size: int | None = None
    changed: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The file's name in the cache."""
        return self.sha256 + self.suffix


@dataclass(frozen=True, slots=True)
class Cache:
    """A cache folder.

    Attributes:
        folder: the cache creates it if it is missing.
        limit: bytes that the cached files and running downloads may take together; None for no
            limit.
        retry: how often to try a download.
    """

    folder: Path
    limit: int | None = None
    retry: Retry = field(default_factory=Retry)

    def open(self, file: RemoteFile, keep: Collection[str] = ()) -> BinaryIO:
        """Opens a file, after downloading it if necessary.

        Args:
            file: the file to open.
            keep: names of cached files to remove last if the cache has to make room.

        Raises:
            InputError: the file cannot be downloaded, or does not have the expected content.
            FileNotFoundError: the server does not have it.
        """
        while True:
            path = self.fetch(file, keep)
            with contextlib.suppress(FileNotFoundError):  # another process removed it for room
                return path.open("rb")

    def fetch(self, file: RemoteFile, keep: Collection[str] = ()) -> Path:
        """Downloads a file unless it is cached, and returns its path; arguments as in ``open``."""
        path = self._fetch(file, keep, urgent=True)
        assert path is not None  # only a fetch that is not urgent gives up
        return path

    def fetch_ahead(self, file: RemoteFile, keep: Collection[str] = ()) -> bool:
        """Downloads a file, unless another process is downloading it or there is no room.

        Args:
            file: the file to download.
            keep: names of cached files that must not make room for it.

        Returns:
            Whether there was room for the file.

        Raises:
            InputError: the file cannot be downloaded, or does not have the expected content.
            FileNotFoundError: the server does not have it.
        """
        return self._fetch(file, keep, urgent=False) is not None

    def remove_changed(self, file: RemoteFile) -> bool:
        """Removes a cached file if its content has changed; returns whether it had."""
        path = self.folder / file.name
        try:
            if remote.sha256_of(path) == file.sha256:
                return False
            path.unlink()
        except FileNotFoundError:
            pass  # another process has removed it already
        return True

    @contextlib.contextmanager
    def lock(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Holds a lock that excludes other processes and threads of this machine.

        Yields:
            Whether the block holds the lock; False only with ``wait=False`` while another does.
        """
        path = self.folder / "locks" / name  # never removed, because that would be a race
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be used as a cache: {error.strerror}"
            ) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True  # closing the file releases the lock

    def _fetch(self, file: RemoteFile, keep: Collection[str], urgent: bool) -> Path | None:
        path = self.folder / file.name
        if in_use(path, file.size):
            return path
        with self.lock(file.name, urgent) as held:
            if not held:
                return path
            if in_use(path, file.size):  # another process downloaded it meanwhile
                return path
            for left in self.folder.glob(f".{file.name}.*.tmp"):  # from a process that was killed
                left.unlink(missing_ok=True)

            def attempt() -> bool:
                try:
                    with contextlib.ExitStack() as stack:
                        out = self._reserve(stack, path, file, keep, urgent)
                        if out is None:
                            return False
                        _download(file, out, self.retry)
                except OSError as error:  # also raised when the exit stack syncs the file
                    if error.errno not in FULL:
                        raise
                    self.make_room(file, keep, urgent)
                    raise OSError("the disk is full, below cache_limit") from None
                return True

            return path if remote.download(file.url, attempt, self.retry) else None

    def make_room(self, file: RemoteFile, keep: Collection[str], urgent: bool) -> None:
        """Removes files because the disk is full although the cache is below its limit."""
        full = f"{self.folder}: no space left for {urls.shown(file.url)}: "
        if self.limit is None:
            raise InputError(f"{full}set cache_limit, or cache_dir to another disk")
        with self.lock(ROOM):
            if not self.remove(file.at_most, keep, urgent):
                raise InputError(f"{full}free some, or set cache_dir to another disk")

    def _reserve(
        self,
        stack: contextlib.ExitStack,
        path: Path,
        file: RemoteFile,
        keep: Collection[str],
        urgent: bool,
    ) -> BinaryIO | None:
        """Opens the file for a download, at its full size, so that ``total`` counts all of it."""
        if self.limit is None:
            return stack.enter_context(whole_file(path))
        while True:
            with self.lock(ROOM):
                over = self.total() + file.at_most - self.limit
                if over <= 0 or self.remove(over, keep, urgent) >= over:
                    out = stack.enter_context(whole_file(path))
                    out.truncate(file.at_most)
                    return out
            if not urgent:
                return None
            time.sleep(_WAIT)  # other processes' downloads take the room until they finish

    def total(self) -> int:
        """Counts the bytes in the cache, and removes what killed processes have left there."""
        total = 0
        for path in self.folder.iterdir():
            unfinished = _UNFINISHED.fullmatch(path.name)
            if unfinished:
                with self.lock(unfinished[1], wait=False) as abandoned:
                    if abandoned:
                        path.unlink(missing_ok=True)
                # Its process may have renamed it since the folder was listed.
                total += _size(path) or _size(self.folder / unfinished[1])
            elif _CACHED.fullmatch(path.name):
                total += _size(path)
        return total

    def remove(self, needed: int, keep: Collection[str], urgent: bool) -> int:
        """Removes the least recently used files until ``needed`` bytes are free.

        Returns:
            The number of bytes freed.
        """
        files: list[tuple[bool, int, int, Path]] = []  # in keep, time of last use, bytes, path
        for path in self.folder.iterdir():
            if _CACHED.fullmatch(path.name) and (urgent or path.name not in keep):
                with contextlib.suppress(FileNotFoundError):
                    used = path.stat().st_mtime_ns
                    files.append((path.name in keep, used, _size(path), path))
        if not urgent and sum(size for _, _, size, _ in files) < needed:
            return 0
        freed = 0
        for _, _, size, path in sorted(files):
            if freed >= needed:
                break
            path.unlink(missing_ok=True)
            freed += size
        return freed


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/autotimm/shards``, or ``~/.cache/autotimm/shards``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autotimm" / "shards"


def _download(file: RemoteFile, out: BinaryIO, retry: Retry) -> None:
    digest, count = hashlib.sha256(), 0
    for chunk in remote.chunks(file.url, file.at_most, retry.stall):
        digest.update(chunk)
        count += out.write(chunk)
    if file.size is not None and count != file.size:
        file.changed()
        more = "or more " if count > file.size else ""
        raise OSError(f"{count:,} bytes {more}came, the manifest says {file.size:,}")
    if digest.hexdigest() != file.sha256:
        file.changed()
        raise OSError("its content is not what the manifest says (sha256 differs)")
    out.truncate(count)


def _size(path: Path) -> int:
    """The bytes of a file: as many as it has, or as a sparse one takes on the disk."""
    try:
        status = path.stat()
        return status.st_blocks * 512 if path.suffix == ".part" else status.st_size
    except FileNotFoundError:
        return 0


def in_use(path: Path, size: int | None) -> bool:
    """Returns whether a file of this size is cached, and sets its time of last use."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: cannot be used as a cache: not a regular file: move it away")
        if size is not None and status.st_size != size:
            return False
        with contextlib.suppress(PermissionError):  # another user's cache, whose times we leave
            os.utime(path)
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"{path}: cannot be used as a cache: {error.strerror}") from None
