"""A folder of this machine as the destination of shards.

    dst/
      .autotimm-shard/           until the manifest is there; beside the journal (``journal.py``)
        lock  part-1-of-3.lock   held by who is writing
        train-000000.tar ...     finished shards
        manifest.json            everything is finished: what is left is to move it up

Invariants: the destination holds what it held until all shards and their manifest are whole. Moving
up begins when nothing is in its way (what has a shard's name and is no file), and is done in steps
that can be done again: it ends, if need be, with the next run, and meanwhile there is no manifest,
without which nothing reads a folder. One run at a time, or several parts of one. Files that are no
shards of the splits in question are never touched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

from autotimm.files.atomic import whole_file
from autotimm.files.retry import poll
from autotimm.format.manifest import MANIFEST, Manifest, Shard, read_manifest, write_manifest
from autotimm.sharding.journal import JOB, WORK, entry_name, is_ours
from autotimm.sharding.writer import Written
from autotimm.structures import InputError

_IN_THE_WAY = "is no file, but has the name of one that is to be replaced; move it away"
_PATIENCE = 5.0  # seconds: the workers of a run that was killed need a moment to notice it
_PAUSE = 0.05  # seconds between two tries


@dataclass(frozen=True, slots=True)
class Claim:
    """A right to write: ``alone``, or beside other parts. ``share`` lets other parts in."""

    alone: bool
    share: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """Shards go to a folder of this machine."""

    dst: Path
    replaceable: ClassVar[bool] = True
    one_process: ClassVar[bool] = False

    def __str__(self) -> str:
        return str(self.dst)

    @property
    def work(self) -> Path:
        """The hidden folder of the unfinished run."""
        return self.dst / WORK

    def check(self, splits: Sequence[str], overwrite: bool) -> None:
        """Refuses early what can be refused without reading the source.

        Raises:
            InputError: it is a file, what is in it leads elsewhere or is in the way, or a split
                would be lost.
        """
        if self.dst.exists() and not self.dst.is_dir():
            raise InputError(f"{self}: is a file; give a folder for the shards")
        if self.work.is_symlink() or (self.work.exists() and not self.work.is_dir()):
            # What lies behind a link is not ours to write to, let alone to clear.
            raise InputError(f"{self.work}: is no folder of an unfinished run; remove it")
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
        """Keeps other runs out until the block ends; ends what an earlier one had begun to install.

        Args:
            part: (which, of how many) lets other parts in once ``Claim.share`` is called.

        Raises:
            InputError: another run, or this part of it, is writing.
            OSError: also the block's own, which then names the folder if it named nothing.
        """
        try:
            self.dst.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                lock, alone = self._lock(stack, part)
                if alone and (self.work / MANIFEST).exists():
                    self._move_up()
                try:
                    yield Claim(alone, lambda: self._share(lock))
                finally:
                    if alone and not (self.work / JOB).exists():
                        # What cannot go (NFS keeps what a reader has open) goes with the next run.
                        shutil.rmtree(self.work, ignore_errors=True)
        except OSError as error:
            if error.errno and error.filename is None:  # a write that fails knows no name
                error.filename = str(self)
            raise

    def manifest(self) -> Manifest | None:
        """The manifest that is in place, or None; a broken one is none."""
        with contextlib.suppress(InputError):
            return read_manifest(self.dst / MANIFEST)
        return None

    def lacks(self, shards: Sequence[Shard]) -> str | None:
        """The first file of finished shards that is not there in its size, or None."""
        for shard in shards:
            for name, size in ((shard.name, shard.bytes), (shard.index, None)):
                if not _has(self.dst / name, size):
                    return name
        return None

    def holds(self, splits: Sequence[str]) -> str | None:
        """The name of a file that a run over these splits would replace, or None."""
        if (self.dst / MANIFEST).exists():
            return MANIFEST
        names = sorted(path.name for path in self.dst.iterdir())
        return next((name for name in names if is_ours(name, splits)), None)

    def job(self) -> bytes | None:
        """The ``job.json`` of an unfinished run."""
        with contextlib.suppress(FileNotFoundError):
            return (self.work / JOB).read_bytes()
        return None

    def begin(self, job: bytes) -> None:
        """Makes an empty journal; nothing of another run is left."""
        self.discard()
        _write(self.work / JOB, job)

    def entries(self, shards: Sequence[str]) -> dict[str, bytes]:
        """The journal's entries of these shards, by the shards' names."""
        found = {}
        for shard in shards:
            with contextlib.suppress(FileNotFoundError):
                found[shard] = (self.work / entry_name(shard)).read_bytes()
        return found

    def stored(self, written: Sequence[Written]) -> list[bool]:
        """Whether the shards that were written are there in their size."""
        return [
            all(
                _has(self.work / s.name, s.bytes) and _has(self.work / s.index, None)
                for s in w.shards
            )
            for w in written
        ]

    @contextlib.contextmanager
    def room(self) -> Iterator[Path]:
        """Yields a folder to write a shard into."""
        yield self.work

    def keep(self, folder: Path, written: Written, name: str, entry: bytes) -> None:
        """Notes that a shard in that folder is whole."""
        # Not forced to the disk: a shard without an entry is only written again.
        with whole_file(self.work / entry_name(name), sync=False) as file:
            file.write(entry)

    def sweep(self, shards: Sequence[str]) -> None:
        """Removes what a worker that was ended left half written of these shards."""
        names = {name.removesuffix(".tar") for name in shards}
        for path in self.work.glob(".*.tmp"):
            if re.sub(r"\.(tar|idx\.npy|json)\.[^.]*\.tmp$", "", path.name[1:]) in names:
                path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes the unfinished run; first what says that it can go on."""
        (self.work / JOB).unlink(missing_ok=True)
        for path in self.work.iterdir():
            if path.suffix != ".lock" and path.name != "lock":
                path.unlink(missing_ok=True)

    def install(self, manifest: Manifest) -> None:
        """Puts finished shards in their place, and removes what they replace."""
        self._refuse_obstacle(manifest)
        write_manifest(self.work / MANIFEST, manifest)
        self._move_up()

    def _move_up(self) -> None:
        """Does what is left of an installation; may be interrupted and done again anywhere."""
        manifest = read_manifest(self.work / MANIFEST)
        shards = [shard for split in manifest.splits.values() for shard in split.shards]
        names = {name for shard in shards for name in (shard.name, shard.index)}
        gone = [n for n in names if not ((self.work / n).exists() or (self.dst / n).exists())]
        if gone:
            raise InputError(f"{self.work}: has lost {min(gone)}; remove that folder and run again")
        self._refuse_obstacle(manifest)  # while the old ones can still be read
        (self.dst / MANIFEST).unlink(missing_ok=True)  # without it nothing reads the old ones
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
        if obstacle is not None:  # an OSError: what is finished is kept
            raise OSError(errno.EEXIST, _IN_THE_WAY, str(obstacle))

    def _obstacle(self, splits: Sequence[str]) -> Path | None:
        """What has the name of a shard of these splits, or of the manifest, and is no file."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.dst) as entries:
            for entry in entries:
                ours = entry.name == MANIFEST or is_ours(entry.name, splits)
                if ours and not (entry.is_symlink() or entry.is_file()):
                    return Path(entry.path)
        return None

    def _lock(
        self, stack: contextlib.ExitStack, part: tuple[int, int] | None
    ) -> tuple[BinaryIO, bool]:
        """Returns the locked file, and whether nobody else has a lock."""

        def take() -> tuple[BinaryIO, bool] | None:
            self.work.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # it has just been removed by its owner
                file = (self.work / "lock").open("ab+")
                alone = _try_lock(file, fcntl.LOCK_EX)
                mine = alone or (part is not None and _try_lock(file, fcntl.LOCK_SH))
                if mine and _is_at(file, self.work / "lock"):
                    return file, alone
                file.close()
            return None

        taken = poll(take, _PATIENCE, _PAUSE)
        if taken is None:
            busy = f"{self}: another autotimm-shard is writing there"
            raise InputError(f"{busy}; wait for it, or give another folder")
        file, alone = taken
        stack.enter_context(file)
        if part is not None:
            self._lock_part(stack, *part)
        return file, alone

    def _lock_part(self, stack: contextlib.ExitStack, which: int, of: int) -> None:
        for path in self.work.glob("part-*-of-*.lock"):
            count = re.fullmatch(r"part-\d+-of-(\d+)\.lock", path.name)
            if count and int(count[1]) != of:
                with path.open("ab+") as other:
                    if not _try_lock(other, fcntl.LOCK_EX):
                        raise InputError(
                            f"--part: {self} is being written in {count[1]} parts, not in {of}"
                        )
        path = self.work / f"part-{which}-of-{of}.lock"
        file = stack.enter_context(path.open("ab+"))
        if not poll(lambda: _try_lock(file, fcntl.LOCK_EX), _PATIENCE, _PAUSE):
            raise InputError(f"--part: another process is writing part {which}/{of} of {self}")

    def _share(self, lock: BinaryIO) -> None:
        # Changing it gives it up for a moment, in which another run may take it.
        if not poll(lambda: _try_lock(lock, fcntl.LOCK_SH), _PATIENCE, _PAUSE):
            raise InputError(f"{self}: another autotimm-shard is writing there; wait for it")


def _try_lock(file: BinaryIO, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file still has that name: its folder may have gone and come again."""
    here, there = os.fstat(file.fileno()), path.stat()
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _has(path: Path, size: int | None) -> bool:
    with contextlib.suppress(OSError):
        found = path.stat().st_size
        return size is None or found == size
    return False


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)
