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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, ClassVar

from autotimm.format.manifest import MANIFEST, Manifest, Shard
from autotimm.format.manifest_file import manifest_bytes, read_manifest
from autotimm.sharding.destinations.journal import JOB, WORK, entry_name, is_ours
from autotimm.sharding.destinations.locks import Claim
from autotimm.sharding.destinations.object_store import ObjectStore
from autotimm.sharding.outcome import Written
from autotimm.structures import InputError

_PREFIX = "autotimm-shard-"  # of temporary folders on this machine


@dataclass(slots=True)
class RemoteFolder:
    """Writes shards to the folder that a URL names.

    Attributes:
        url: with a scheme that fsspec knows.
        replaceable: see ``LocalFolder``.
    """

    url: str
    replaceable: ClassVar[bool] = False
    _store: ObjectStore = field(init=False)
    _room: str = field(default="", init=False)  # the local folder for shards before their upload

    def __post_init__(self) -> None:
        self._store = ObjectStore(self.url)

    def __str__(self) -> str:
        return str(self._store)

    @property
    def one_process(self) -> bool:
        """Whether other processes cannot see what this one writes."""
        return self._store.scheme == "memory"

    def check(self, splits: Sequence[str], overwrite: bool) -> None:
        """Makes the checks that need neither the source nor a request.

        A request would make fsspec start a thread, and this process has yet to fork its workers.

        Raises:
            InputError: fsspec does not know the scheme, or needs a package that is not installed.
        """
        self._store.check()

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
        content = self._store.read(MANIFEST)
        with contextlib.suppress(InputError):
            return read_manifest(content) if content is not None else None
        return None

    def lacks(self, shards: Sequence[Shard]) -> str | None:
        """The first file of these shards that is missing or of another size, or None."""
        there = self._store.listing()
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
        there = self._store.listing()
        if MANIFEST in there:
            return MANIFEST
        if JOB in self._store.listing(WORK):
            return None
        return next((name for name in sorted(there) if is_ours(name, splits)), None)

    def job(self) -> bytes | None:
        """The content of ``job.json`` of an unfinished run, or None."""
        return self._store.read(f"{WORK}/{JOB}")

    def begin(self, job: bytes) -> None:
        """Starts a new journal; a run writes shards without an entry again."""
        self.discard()
        self._store.send(job, f"{WORK}/{JOB}")

    def entries(self, shards: Sequence[str]) -> dict[str, bytes]:
        """The journal's entries for these shards: shard name -> content."""
        there = self._store.listing(WORK)
        wanted = {shard: f"{WORK}/{entry_name(shard)}" for shard in shards}
        found = {s: self._store.read(name) for s, name in wanted.items() if entry_name(s) in there}
        return {shard: content for shard, content in found.items() if content is not None}

    def stored(self, written: Sequence[Written]) -> list[bool]:
        """For each entry, whether its shard and index exist, the shard in its right size."""
        there = self._store.listing()
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
            self._store.send(folder / shard.name, shard.name)
            self._store.send(folder / shard.index, shard.index)
        self._store.send(entry, f"{WORK}/{entry_name(name)}")

    def sweep(self, shards: Sequence[str]) -> None:
        """Does nothing, because an incomplete upload has no name in the store."""

    def discard(self) -> None:
        """Removes the unfinished run; ``job.json`` first, so that no run can resume the rest."""
        journal, there = self._store.listing(WORK), self._store.listing()
        if JOB in journal:
            self._store.remove(f"{WORK}/{JOB}")
        for entry in journal.keys() - {JOB}:
            shard = entry.removesuffix(".json")
            unused = {f"{shard}.tar", f"{shard}.idx.npy"} if MANIFEST not in there else set()
            for name in unused & there.keys():
                self._store.remove(name)
            self._store.remove(f"{WORK}/{entry}")
        self._store.remove_folder(WORK)

    def install(self, manifest: Manifest) -> None:
        """Removes shards that are not in the manifest, uploads it, and removes the journal."""
        shards = [shard for split in manifest.splits.values() for shard in split.shards]
        names = {name for shard in shards for name in (shard.name, shard.index)}
        for name in self._store.listing():
            if is_ours(name, manifest.splits) and name not in names:
                self._store.remove(name)
        self._store.send(manifest_bytes(manifest), MANIFEST)
        self.discard()


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
