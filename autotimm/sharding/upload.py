"""An object store, or anything else that fsspec writes to, as the destination of shards.

    s3://bucket/shards/
      train-000000.tar ...       shards under their final names; nothing reads them yet
      .autotimm-shard/           the journal (``journal.py``), until the manifest is in place
      manifest.json              written last

Invariants: a shard is first written to this machine, and appears in the store complete; then comes
its entry in the journal, and the manifest after all shards. An existing manifest is never replaced,
because readers may be using it. No message contains a URL's secrets.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, TypeVar
from urllib.parse import urlsplit

from autotimm.files import urls
from autotimm.files.atomic import FULL
from autotimm.files.retry import Retry, retried
from autotimm.format.manifest import MANIFEST, Manifest, Shard, manifest_bytes, read_manifest
from autotimm.sharding.journal import JOB, WORK, entry_name, is_ours
from autotimm.sharding.staging import Claim
from autotimm.sharding.writer import Written
from autotimm.structures import InputError

_T = TypeVar("_T")

_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "r2", "memory"}
"""Stores in which an object appears only when it is complete; in others we rename it then."""
_PREFIX = "autotimm-shard-"  # of temporary folders on this machine


@dataclass(slots=True)
class RemoteFolder:
    """Writes shards to the folder that a URL names.

    Attributes:
        url: with a scheme that fsspec knows.
        retry: how often to try a request.
        replaceable: see ``LocalFolder``.
    """

    url: str
    retry: Retry = field(default_factory=Retry)
    replaceable: ClassVar[bool] = False
    _room: str = field(default="", init=False)  # the local folder for shards before their upload

    def __str__(self) -> str:
        return urls.shown(self.url)

    @property
    def scheme(self) -> str:
        """The URL's scheme."""
        return urlsplit(self.url).scheme.lower()

    @property
    def one_process(self) -> bool:
        """Whether other processes cannot see what this one writes."""
        return self.scheme == "memory"

    def check(self, splits: Sequence[str], overwrite: bool) -> None:
        """Makes the checks that need neither the source nor a request.

        A request would make fsspec start a thread, and this process has yet to fork its workers.

        Raises:
            InputError: fsspec does not know the scheme, or needs a package that is not installed.
        """
        import fsspec

        with self._known():
            fsspec.get_filesystem_class(self.scheme)

    @contextlib.contextmanager
    def claim(self, part: tuple[int, int] | None) -> Iterator[Claim]:
        """Makes a local folder for shards before their upload.

        Object stores have no locks. Two runs of the same job only do the work twice; the journal
        makes a run of another job fail.
        """
        scratch = Path(tempfile.gettempdir())
        _sweep_scratch(scratch)
        room, lock = _make_room(scratch)
        try:
            with lock:
                self._room = str(room)
                yield Claim(alone=True)
        finally:
            shutil.rmtree(room, ignore_errors=True)

    def manifest(self) -> Manifest | None:
        """The manifest in the store; None if there is none or it is damaged."""
        content = self._read(MANIFEST)
        with contextlib.suppress(InputError):
            return read_manifest(content) if content is not None else None
        return None

    def lacks(self, shards: Sequence[Shard]) -> str | None:
        """The first file of these shards that is missing or of another size, or None."""
        there = self._list()
        for shard in shards:
            if there.get(shard.name) != shard.bytes:
                return shard.name
            if shard.index not in there:
                return shard.index
        return None

    def holds(self, splits: Sequence[str]) -> str | None:
        """The name of an object that a run with these splits would replace, or None.

        Shards of an unfinished run, which have their final names already, do not count.
        """
        there = self._list()
        if MANIFEST in there:
            return MANIFEST
        if JOB in self._list(WORK):
            return None
        return next((name for name in sorted(there) if is_ours(name, splits)), None)

    def job(self) -> bytes | None:
        """The content of ``job.json`` of an unfinished run, or None."""
        return self._read(f"{WORK}/{JOB}")

    def begin(self, job: bytes) -> None:
        """Starts a new journal; a run writes shards without an entry again."""
        self.discard()
        self._send(job, f"{WORK}/{JOB}")

    def entries(self, shards: Sequence[str]) -> dict[str, bytes]:
        """The journal's entries for these shards: shard name -> content."""
        there = self._list(WORK)
        wanted = {shard: f"{WORK}/{entry_name(shard)}" for shard in shards}
        found = {s: self._read(name) for s, name in wanted.items() if entry_name(s) in there}
        return {shard: content for shard, content in found.items() if content is not None}

    def stored(self, written: Sequence[Written]) -> list[bool]:
        """For each entry, whether its shard and index exist, the shard in its right size."""
        there = self._list()
        return [
            all(there.get(s.name) == s.bytes and s.index in there for s in w.shards)
            for w in written
        ]

    @contextlib.contextmanager
    def room(self) -> Iterator[Path]:
        """Yields a folder to write a shard into, and removes it when the block ends."""
        with tempfile.TemporaryDirectory(dir=self._room) as folder:
            yield Path(folder)

    def keep(self, folder: Path, written: Written, name: str, entry: bytes) -> None:
        """Uploads a finished shard from a folder, then its entry of the journal."""
        for shard in written.shards:
            self._send(folder / shard.name, shard.name)
            self._send(folder / shard.index, shard.index)
        self._send(entry, f"{WORK}/{entry_name(name)}")

    def sweep(self, shards: Sequence[str]) -> None:
        """Does nothing, because an incomplete upload has no name in the store."""

    def discard(self) -> None:
        """Removes the unfinished run; ``job.json`` first, so that no run can resume the rest."""
        journal, there = self._list(WORK), self._list()
        if JOB in journal:
            self._remove(f"{WORK}/{JOB}")
        for entry in journal.keys() - {JOB}:
            shard = entry.removesuffix(".json")
            unused = {f"{shard}.tar", f"{shard}.idx.npy"} if MANIFEST not in there else set()
            for name in unused & there.keys():
                self._remove(name)
            self._remove(f"{WORK}/{entry}")
        if self.scheme not in _WHOLE:  # file systems with real folders
            with contextlib.suppress(OSError):
                files, root = self._store()
                files.rmdir(f"{root}/{WORK}")

    def install(self, manifest: Manifest) -> None:
        """Removes shards that are not in the manifest, uploads it, and removes the journal."""
        shards = [shard for split in manifest.splits.values() for shard in split.shards]
        names = {name for shard in shards for name in (shard.name, shard.index)}
        for name in self._list():
            if is_ours(name, manifest.splits) and name not in names:
                self._remove(name)
        self._send(manifest_bytes(manifest), MANIFEST)
        self.discard()

    def _store(self) -> tuple[Any, str]:
        """The fsspec file system, which fsspec caches in each process, and the folder's path."""
        import fsspec

        options: dict[str, Any] = {"use_listings_cache": False}
        if self.scheme in ("s3", "s3a"):  # botocore's own retries take minutes, for each of ours
            options["config_kwargs"] = {"connect_timeout": 20, "retries": {"max_attempts": 2}}
        with self._known():
            files, root = fsspec.url_to_fs(self.url, **options)
        return files, root.rstrip("/")

    @contextlib.contextmanager
    def _known(self) -> Iterator[None]:
        try:
            yield
        except ImportError as error:  # fsspec's message says what to install
            raise InputError(f"{self}: {urls.reason(error, self.url)}") from None
        except ValueError as error:
            reason = urls.reason(error, self.url)
            raise InputError(f"{self}: cannot be written to: {reason}") from None

    def _list(self, folder: str = "") -> dict[str, int]:
        """The files in a folder of the destination: name -> bytes."""

        def attempt(files: Any, root: str) -> dict[str, int]:
            try:
                found = files.ls(f"{root}/{folder}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
            return {
                file["name"].rstrip("/").rpartition("/")[2]: file["size"]
                for file in found
                if file["type"] == "file"
            }

        return self._retried("read", attempt)

    def _read(self, name: str) -> bytes | None:
        def attempt(files: Any, root: str) -> bytes | None:
            try:
                return files.cat_file(f"{root}/{name}")
            except FileNotFoundError:
                return None

        return self._retried("read", attempt)

    def _send(self, source: Path | bytes, name: str) -> None:
        """Uploads a file, so that it appears under its name when it is complete."""

        def attempt(files: Any, root: str) -> None:
            at_once = self.scheme in _WHOLE
            target = f"{root}/{name}" if at_once else f"{root}/{WORK}/{name.rpartition('/')[2]}.tmp"
            if not at_once:
                files.makedirs(f"{root}/{WORK}", exist_ok=True)
            if isinstance(source, bytes):
                files.pipe_file(target, source)
            else:
                files.put_file(str(source), target)
            if not at_once:
                with contextlib.suppress(FileNotFoundError):  # not all can rename over a file
                    files.rm_file(f"{root}/{name}")
                files.mv(target, f"{root}/{name}")

        self._retried(f"written ({name.rpartition('/')[2]})", attempt)

    def _remove(self, name: str) -> None:
        def attempt(files: Any, root: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                files.rm_file(f"{root}/{name}")

        self._retried("cleaned up", attempt)

    def _retried(self, what: str, attempt: Callable[[Any, str], _T]) -> _T:
        try:
            return retried(lambda: attempt(*self._store()), self.retry, _is_final)
        except InputError:
            raise
        except Exception as error:
            if _is_full(error):
                raise
            tries, reason = self.retry.tries(_is_final(error)), urls.reason(error, self.url)
            raise OSError(f"{self}: cannot be {what}{tries}: {reason}") from None


def _is_final(error: Exception) -> bool:
    lasting = InputError | FileNotFoundError | PermissionError | NotImplementedError
    return (
        isinstance(error, lasting)
        or _is_full(error)
        or type(error).__name__ == "NoCredentialsError"  # botocore's
    )


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in FULL


def _make_room(scratch: Path) -> tuple[Path, BinaryIO]:
    """Makes a temporary folder; no run removes it while the returned lock file is open."""
    while True:
        room = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=scratch))
        lock = (room / "lock").open("ab")
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), (room / "lock").stat()):
                return room, lock
        lock.close()  # another run removed the folder before we had locked it


def _sweep_scratch(scratch: Path) -> None:
    """Removes the temporary folders that killed runs of this user have left."""
    for folder in scratch.glob(f"{_PREFIX}*/"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / "lock").open("rb+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
