"""The cache folder: files from a server, whole and checked, shared by all processes of a machine.

Invariants: a file in it bears the sha256 of its content as its name and got there by a rename,
after size and hash were found right; so it is never partial, and two data sets whose shards have
the same names cannot meet. One process downloads a file, the others wait for it. With a limit, the
files that were opened longest ago go first; nothing but such files is ever removed, and whoever has
one open keeps what it reads.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from autotimm.files import remote, urls
from autotimm.files.atomic import FULL, whole_file
from autotimm.files.retry import Retry
from autotimm.structures import InputError

_CACHED = re.compile(r"[0-9a-f]{64}\.(?:tar|npy)")
_UNFINISHED = re.compile(r"\.([0-9a-f]{64}\.(?:tar|npy))\..*\.tmp")
_ROOM = "room"  # the lock of whoever counts bytes
_WAIT = 0.05  # seconds between looks at whether others have finished


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on a server.

    Attributes:
        url: where.
        sha256: of its content, hexadecimal.
        suffix: of its name in the cache: ".tar" or ".npy".
        at_most: bytes at which a download is broken off.
        size: in bytes, where it is known.
    """

    url: str
    sha256: str
    suffix: str
    at_most: int
    size: int | None = None

    @property
    def name(self) -> str:
        """Its name in the cache."""
        return self.sha256 + self.suffix


@dataclass(frozen=True, slots=True)
class Cache:
    """A cache folder.

    Attributes:
        folder: made where it is missing.
        limit: bytes that its files may take together, those being downloaded included; None for as
            many as there is room for.
        retry: how downloads are tried.
    """

    folder: Path
    limit: int | None = None
    retry: Retry = field(default_factory=Retry)

    def open(self, file: RemoteFile, keep: Collection[str] = ()) -> BinaryIO:
        """Opens a file, downloaded if need be.

        Args:
            file: which.
            keep: names of files that are removed last where room has to be made.

        Raises:
            InputError: it cannot be had, or is not what the manifest says.
            FileNotFoundError: the server does not have it.
        """
        while True:
            path = self.fetch(file, keep)
            with contextlib.suppress(FileNotFoundError):  # removed in between, to make room
                return path.open("rb")

    def fetch(self, file: RemoteFile, keep: Collection[str] = ()) -> Path:
        """Brings a file into the cache, and tells where it lies; see ``open``."""
        path = self._fetch(file, keep, urgent=True)
        assert path is not None  # only what is not urgent may be left
        return path

    def fetch_ahead(self, file: RemoteFile, keep: Collection[str] = ()) -> bool:
        """Brings a file into the cache, unless another process is at it or there is no room.

        Args:
            file: which.
            keep: names of files that are not removed for it.

        Returns:
            Whether there was room for it.

        Raises:
            InputError: it cannot be had, or is not what the manifest says.
            FileNotFoundError: the server does not have it.
        """
        return self._fetch(file, keep, urgent=False) is not None

    def remove_changed(self, file: RemoteFile) -> bool:
        """Removes a file whose content is no longer what it was when it came, and tells so."""
        path = self.folder / file.name
        try:
            if remote.sha256_of(path) == file.sha256:
                return False
            path.unlink()
        except FileNotFoundError:
            pass  # another process has found it out, too
        return True

    @contextlib.contextmanager
    def lock(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Holds a lock among this machine's processes and threads, until the block ends.

        Yields whether it is held: always, unless ``wait`` is False and another holds it.
        """
        path = self.folder / "locks" / name  # the file stays, as removing it would race
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
        if _use(path, file.size):
            return path
        with self.lock(file.name, urgent) as held:
            if not held:
                return path
            if _use(path, file.size):  # somebody else was quicker
                return path
            for left in self.folder.glob(f".{file.name}.*.tmp"):  # by a process that was killed
                left.unlink(missing_ok=True)

            def attempt() -> bool:
                try:
                    with contextlib.ExitStack() as stack:
                        out = self._reserve(stack, path, file, keep, urgent)
                        if out is None:
                            return False
                        _download(file, out, self.retry)
                except OSError as error:  # also of its end, where it is brought to the disk
                    if error.errno not in FULL:
                        raise
                    self._make_room(file, keep, urgent)
                    raise OSError("the disk is full, below cache_limit") from None
                return True

            return path if remote.download(file.url, attempt, self.retry) else None

    def _make_room(self, file: RemoteFile, keep: Collection[str], urgent: bool) -> None:
        """Removes files because the disk is full, which no limit foresaw."""
        full = f"{self.folder}: no space left for {urls.shown(file.url)}: "
        if self.limit is None:
            raise InputError(f"{full}set cache_limit, or cache_dir to another disk")
        with self.lock(_ROOM):
            if not self._remove(file.at_most, keep, urgent):
                raise InputError(f"{full}free some, or set cache_dir to another disk")

    def _reserve(
        self,
        stack: contextlib.ExitStack,
        path: Path,
        file: RemoteFile,
        keep: Collection[str],
        urgent: bool,
    ) -> BinaryIO | None:
        """Opens the file that a download goes to, of the full size already, so that it counts."""
        if self.limit is None:
            return stack.enter_context(whole_file(path))
        while True:
            with self.lock(_ROOM):
                over = self._total() + file.at_most - self.limit
                if over <= 0 or self._remove(over, keep, urgent) >= over:
                    out = stack.enter_context(whole_file(path))
                    out.truncate(file.at_most)
                    return out
            if not urgent:
                return None
            time.sleep(_WAIT)  # what is left are downloads of others, which come to an end

    def _total(self) -> int:
        """The bytes of the cache; what processes left that were killed is removed."""
        total = 0
        for path in self.folder.iterdir():
            unfinished = _UNFINISHED.fullmatch(path.name)
            if unfinished:
                with self.lock(unfinished[1], wait=False) as abandoned:
                    if abandoned:
                        path.unlink(missing_ok=True)
                # It may have got its own name since the folder was listed.
                total += _size(path) or _size(self.folder / unfinished[1])
            elif _CACHED.fullmatch(path.name):
                total += _size(path)
        return total

    def _remove(self, needed: int, keep: Collection[str], urgent: bool) -> int:
        """Removes files, longest unused first, until enough bytes are free; returns how many."""
        files: list[tuple[bool, int, int, Path]] = []  # kept, used, bytes, where
        for path in self.folder.iterdir():
            if _CACHED.fullmatch(path.name) and (urgent or path.name not in keep):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    files.append((path.name in keep, status.st_mtime_ns, status.st_size, path))
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
    """``$XDG_CACHE_HOME/autotimm/shards``, or the same under ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autotimm" / "shards"


def _download(file: RemoteFile, out: BinaryIO, retry: Retry) -> None:
    digest, count = hashlib.sha256(), 0
    for chunk in remote.chunks(file.url, file.at_most, retry.stall):
        digest.update(chunk)
        count += out.write(chunk)
    if file.size is not None and count != file.size:
        more = "or more " if count > file.size else ""
        raise OSError(f"{count:,} bytes {more}came, the manifest says {file.size:,}")
    if digest.hexdigest() != file.sha256:
        raise OSError("its content is not what the manifest says (sha256 differs)")
    out.truncate(count)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _use(path: Path, size: int | None) -> bool:
    """Tells whether a file is there, and notes that it is in use."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: cannot be used as a cache: it is no file: move it away")
        if size is not None and status.st_size != size:
            return False
        with contextlib.suppress(PermissionError):  # another user's cache: their affair
            os.utime(path)
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"{path}: cannot be used as a cache: {error.strerror}") from None
