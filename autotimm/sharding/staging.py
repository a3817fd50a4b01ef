"""Puts the shards of a run into their folder all at once, or not at all.

Invariants: new shards are written in a hidden folder inside the destination (so on its file system)
and take their places only when all of them and their manifest are whole; until then, and after any
failure, the destination holds what it held. One run at a time; files that are no shards of the
splits in question are never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from autotimm.sharding.manifest import MANIFEST, read_manifest
from autotimm.structures import InputError

_PREFIX = ".autotimm-shard-"
_OLD = "old"  # a name that no shard has


@contextlib.contextmanager
def staged(dst: Path) -> Iterator[Path]:
    """Keeps other runs out of a folder and yields an empty one inside it.

    That one goes, with what is left in it, when the block ends; what a killed run left goes first.

    Raises:
        InputError: another run is writing to ``dst``.
        OSError: also the block's own, which then names ``dst`` if it named nothing.
    """
    try:
        handle = os.open(dst, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock(handle, dst)
            for left in dst.glob(f"{_PREFIX}*/"):
                shutil.rmtree(left, ignore_errors=True)
            new = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=dst))
            try:
                yield new
            finally:
                # What cannot go (NFS keeps a file that a reader has open) goes with the next run.
                shutil.rmtree(new, ignore_errors=True)
        finally:
            os.close(handle)
    except OSError as error:
        if error.filename is None:  # a full disk is noticed by a write, which knows no name
            error.filename = str(dst)
        raise


def old_shards(dst: Path, splits: Sequence[str], overwrite: bool) -> list[Path]:
    """Finds what an earlier run left in a folder and a new one replaces, the manifest first.

    Args:
        dst: the folder; may be missing.
        splits: what the new run writes.
        overwrite: whether anything may be replaced.

    Raises:
        InputError: there is something and it may not, or a split would be lost.
    """
    if not dst.is_dir():
        return []
    found = [dst / MANIFEST] if (dst / MANIFEST).exists() else []
    ours = re.compile(
        rf"\.?({'|'.join(map(re.escape, splits))})-[0-9]{{6}}\.(tar|idx\.npy)(\..*\.tmp)?"
    )
    found += sorted(path for path in dst.iterdir() if ours.fullmatch(path.name))
    if found and not overwrite:
        raise InputError(f"{dst}: holds {found[0].name} already; --overwrite replaces the shards")
    lost: list[str] = []
    with contextlib.suppress(InputError):  # a broken manifest is replaced as a whole
        lost = [name for name in read_manifest(dst).splits if name not in splits]
    if lost:
        raise InputError(
            f"{dst}: --overwrite would lose its split {', '.join(map(repr, lost))}; write all of "
            "its splits, or give another folder"
        )
    return found


def install(new: Path, names: Sequence[str], dst: Path, old: Sequence[Path]) -> None:
    """Puts finished files in the place of old ones; after a failure the old ones are back.

    Args:
        new: the folder that ``staged`` made.
        names: of the files in it, the manifest last: a folder that has one is complete.
        dst: where they go.
        old: what they replace, the manifest first: without it nothing reads the others.
    """
    aside = new / _OLD
    aside.mkdir()
    moves = [(path, aside / path.name) for path in old]
    moves += [(new / name, dst / name) for name in names]
    begun: list[tuple[Path, Path]] = []
    try:
        for move in moves:
            begun.append(move)
            move[0].rename(move[1])
    except BaseException:  # Ctrl-C too
        for before, after in reversed(begun):
            if not before.exists():
                after.rename(before)
        raise


def _lock(handle: int, dst: Path) -> None:
    """Locks a folder until the handle is closed, by the end of the process at the latest."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"{dst}: another autotimm-shard is writing there; wait for it, or give another folder"
        ) from None
