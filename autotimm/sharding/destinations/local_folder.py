"""A local folder as the destination of shards.

    dst/
      .autotimm-shard/           the work folder, until the manifest is in place
        lock  part-1-of-3.lock   locked by the processes that write (``locks.py``)
        job.json ...             the journal (``journal.py``)
        train-000000.tar ...     finished shards
        manifest.json            all shards are finished, and only have to be moved to dst/

Invariants: the destination stays as it was until all shards and their manifest are complete. The
move begins only if nothing obstructs it, that is, nothing other than a file has the name of a
shard. Every step of it can be repeated: if it is interrupted, the next run finishes it, and until
then there is no manifest, without which nothing reads the folder. Only one run writes at a time, or
several parts of one run. A run never touches files other than shards of its splits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from autotimm.files.atomic import whole_file
from autotimm.format.manifest import MANIFEST, Manifest, Shard
from autotimm.format.manifest_file import read_manifest, write_manifest
from autotimm.sharding.destinations.journal import JOB, WORK, entry_name, is_ours
from autotimm.sharding.destinations.locks import Claim, claimed
from autotimm.sharding.outcome import Written
from autotimm.structures import InputError

_IN_THE_WAY = "is not a file, but has the name of one that the run would write; move it away"


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """Writes shards to a local folder.

    Attributes:
        dst: the folder.
        replaceable: whether a run can overwrite a finished one.
        one_process: whether other processes cannot see what this one writes.
    """

    dst: Path
    replaceable: ClassVar[bool] = True
    one_process: ClassVar[bool] = False

    def __str__(self) -> str:
        return str(self.dst)

    @property
    def work(self) -> Path:
        """The hidden work folder of an unfinished run."""
        return self.dst / WORK

    def check(self, splits: Sequence[str], overwrite: bool) -> None:
        """Makes the checks that do not need the source.

        Raises:
            InputError: the destination is a file, the work folder is a link or a file, something
                other than a file has the name of a shard, or overwriting would lose a split.
        """
        if self.dst.exists() and not self.dst.is_dir():
            raise InputError(f"{self}: is a file; give a folder for the shards")
        if self.work.is_symlink() or (self.work.exists() and not self.work.is_dir()):
            # The target of a link may belong to something else, and begin() would clear it.
            raise InputError(f"{self.work}: is not the folder of an unfinished run; remove it")
        obstacle = self._obstacle(splits)
        if obstacle is not None:
            raise InputError(f"{obstacle}: {_IN_THE_WAY}")
        manifest = self.manifest()
        lost = [name for name in manifest.splits if name not in splits] if manifest else []
        if overwrite and lost:
            raise InputError(
                f"{self}: --overwrite would lose its split {', '.join(map(repr, lost))}; write all "
                "of its splits, or give another folder"
            )

    @contextlib.contextmanager
    def claim(self, part: tuple[int, int] | None) -> Iterator[Claim]:
        """Locks the destination until the block ends; first finishes an interrupted installation.

        Args:
            part: (which, of how many); other parts can write once ``Claim.share`` was called.

        Raises:
            InputError: another run, or another process with the same part, is writing.
            OSError: the folder cannot be written to. An OSError of the block that has no file name
                gets the folder's.
        """
        try:
            self.dst.mkdir(parents=True, exist_ok=True)
            with claimed(self.dst, part) as claim:
                if claim.alone and (self.work / MANIFEST).exists():
                    self._move_up()
                try:
                    yield claim
                finally:
                    if claim.alone and not (self.work / JOB).exists():
                        # What cannot be removed now (NFS keeps open files) the next run removes.
                        shutil.rmtree(self.work, ignore_errors=True)
        except OSError as error:
            if error.errno and error.filename is None:  # a failed write() has no file name
                error.filename = str(self)
            raise

    def manifest(self) -> Manifest | None:
        """The manifest in the destination; None if there is none or it is damaged."""
        with contextlib.suppress(InputError):
            return read_manifest(self.dst / MANIFEST)
        return None

    def lacks(self, shards: Sequence[Shard]) -> str | None:
        """The first file of these shards that is missing or of another size, or None."""
        for shard in shards:
            for name, size in ((shard.name, shard.bytes), (shard.index, None)):
                if not _has(self.dst / name, size):
                    return name
        return None

    def holds(self, splits: Sequence[str]) -> str | None:
        """The name of a file that a run with these splits would replace, or None."""
        if (self.dst / MANIFEST).exists():
            return MANIFEST
        names = sorted(path.name for path in self.dst.iterdir())
        return next((name for name in names if is_ours(name, splits)), None)

    def job(self) -> bytes | None:
        """The content of ``job.json`` of an unfinished run, or None."""
        with contextlib.suppress(FileNotFoundError):
            return (self.work / JOB).read_bytes()
        return None

    def begin(self, job: bytes) -> None:
        """Starts a new journal, and removes everything of an earlier unfinished run."""
        self.discard()
        _write(self.work / JOB, job)

    def entries(self, shards: Sequence[str]) -> dict[str, bytes]:
        """The journal's entries for these shards: shard name -> content."""
        found = {}
        for shard in shards:
            with contextlib.suppress(FileNotFoundError):
                found[shard] = (self.work / entry_name(shard)).read_bytes()
        return found

    def stored(self, written: Sequence[Written]) -> list[bool]:
        """For each entry, whether its shard and index exist, the shard in its right size."""
        return [
            all(
                _has(self.work / s.name, s.bytes) and _has(self.work / s.index, None)
                for s in w.shards
            )
            for w in written
        ]

    @contextlib.contextmanager
    def room(self) -> Iterator[Path]:
        """Yields the folder to write a shard into."""
        yield self.work

    def keep(self, folder: Path, written: Written, name: str, entry: bytes) -> None:
        """Adds the entry of a finished shard to the journal."""
        # Not synced, because the next run merely writes a shard without an entry again.
        with whole_file(self.work / entry_name(name), sync=False) as file:
            file.write(entry)

    def sweep(self, shards: Sequence[str]) -> None:
        """Removes the unfinished files of these shards that a killed worker has left."""
        names = {name.removesuffix(".tar") for name in shards}
        for path in self.work.glob(".*.tmp"):
            if re.sub(r"\.(tar|idx\.npy|json)\.[^.]*\.tmp$", "", path.name[1:]) in names:
                path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes the unfinished run; ``job.json`` first, so that no run can resume the rest."""
        (self.work / JOB).unlink(missing_ok=True)
        for path in self.work.iterdir():
            if path.suffix != ".lock" and path.name != "lock":
                path.unlink(missing_ok=True)

    def install(self, manifest: Manifest) -> None:
        """Moves the finished shards into the destination, and removes the ones they replace."""
        self._refuse_obstacle(manifest)
        write_manifest(self.work / MANIFEST, manifest)
        self._move_up()

    def _move_up(self) -> None:
        """Finishes an installation; it can be interrupted anywhere and repeated."""
        manifest = read_manifest(self.work / MANIFEST)
        shards = [shard for split in manifest.splits.values() for shard in split.shards]
        names = {name for shard in shards for name in (shard.name, shard.index)}
        gone = [n for n in names if not ((self.work / n).exists() or (self.dst / n).exists())]
        if gone:
            raise InputError(f"{self.work}: has lost {min(gone)}; remove that folder and run again")
        self._refuse_obstacle(manifest)  # while the old shards are still readable
        (self.dst / MANIFEST).unlink(missing_ok=True)  # without it nothing reads the old shards
        for name in names:
            if (self.work / name).exists():
                (self.work / name).replace(self.dst / name)
        for path in list(self.dst.iterdir()):
            if is_ours(path.name, manifest.splits) and path.name not in names:
                path.unlink(missing_ok=True)
        (self.work / JOB).unlink(missing_ok=True)
        (self.work / MANIFEST).replace(self.dst / MANIFEST)

    def _refuse_obstacle(self, manifest: Manifest) -> None:
        obstacle = self._obstacle([*manifest.splits])
        if obstacle is not None:  # an OSError, after which a run keeps its finished shards
            raise OSError(errno.EEXIST, _IN_THE_WAY, str(obstacle))

    def _obstacle(self, splits: Sequence[str]) -> Path | None:
        """Anything other than a file that has the name of the manifest or of a shard, or None."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.dst) as entries:
            for entry in entries:
                ours = entry.name == MANIFEST or is_ours(entry.name, splits)
                if ours and not (entry.is_symlink() or entry.is_file()):
                    return Path(entry.path)
        return None


def _has(path: Path, size: int | None) -> bool:
    with contextlib.suppress(OSError):
        found = path.stat().st_size
        return size is None or found == size
    return False


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)
