"""The locks of a local destination: one run writes at a time, or several parts of one run.

Invariants: a run holds an exclusive lock of ``lock`` while it prepares, and a run in parts shares
it afterwards; each part holds a lock of its own. The kernel releases them all when the last process
of a run has ended, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from autotimm.files.retry import poll
from autotimm.sharding.destinations.journal import WORK
from autotimm.structures import InputError

_PATIENCE = 5.0  # seconds to wait for a lock; workers of a killed run need a moment to end
_PAUSE = 0.05  # seconds between two tries


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to write to a destination.

    Attributes:
        alone: whether no other part is writing.
        share: lets other parts write too.
    """

    alone: bool
    share: Callable[[], None] = lambda: None


@contextlib.contextmanager
def claimed(dst: Path, part: tuple[int, int] | None) -> Iterator[Claim]:
    """Locks a folder, which exists, until the block ends.

    Args:
        dst: the folder; its locks are in its work folder, which this makes.
        part: (which, of how many); other parts can write once ``Claim.share`` was called.

    Raises:
        InputError: another run, or another process with the same part, is writing.
    """
    with contextlib.ExitStack() as stack:
        lock, alone = _lock(stack, dst, part)
        yield Claim(alone, lambda: _share(lock, dst))


def _lock(
    stack: contextlib.ExitStack, dst: Path, part: tuple[int, int] | None
) -> tuple[BinaryIO, bool]:
    """Returns the locked file, and whether no other process holds a lock."""
    work = dst / WORK

    def take() -> tuple[BinaryIO, bool] | None:
        work.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # a run that ended has just removed it
            file = (work / "lock").open("ab+")
            alone = _try_lock(file, fcntl.LOCK_EX)
            mine = alone or (part is not None and _try_lock(file, fcntl.LOCK_SH))
            if mine and _is_at(file, work / "lock"):
                return file, alone
            file.close()
        return None

    taken = poll(take, _PATIENCE, _PAUSE)
    if taken is None:
        busy = f"{dst}: another autotimm-shard is writing there"
        raise InputError(f"{busy}; wait for it, or give another folder")
    file, alone = taken
    stack.enter_context(file)
    if part is not None:
        _lock_part(stack, dst, *part)
    return file, alone


def _lock_part(stack: contextlib.ExitStack, dst: Path, which: int, of: int) -> None:
    work = dst / WORK
    for path in work.glob("part-*-of-*.lock"):
        count = re.fullmatch(r"part-\d+-of-(\d+)\.lock", path.name)
        if count and int(count[1]) != of:
            with path.open("ab+") as other:
                if not _try_lock(other, fcntl.LOCK_EX):
                    raise InputError(
                        f"--part: {dst} is being written in {count[1]} parts, not in {of}"
                    )
    path = work / f"part-{which}-of-{of}.lock"
    file = stack.enter_context(path.open("ab+"))
    if not poll(lambda: _try_lock(file, fcntl.LOCK_EX), _PATIENCE, _PAUSE):
        raise InputError(f"--part: another process is writing part {which}/{of} of {dst}")


def _share(lock: BinaryIO, dst: Path) -> None:
    # flock() releases the exclusive lock before it takes the shared one, so a run may get in.
    if not poll(lambda: _try_lock(lock, fcntl.LOCK_SH), _PATIENCE, _PAUSE):
        raise InputError(f"{dst}: another autotimm-shard is writing there; wait for it")


def _try_lock(file: BinaryIO, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether a path still names an open file; its folder may have been removed and made anew."""
    here, there = os.fstat(file.fileno()), path.stat()
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
