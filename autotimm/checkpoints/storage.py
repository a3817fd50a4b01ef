"""Write and read the trainer's checkpoints: whole or not at all, and plain values only.

Invariants: a file or folder with a checkpoint's name is whole, even if a process dies while writing
it; a checkpoint that is a folder (of strategies that shard) lists its files in ``complete.json``,
so that a partial copy can be recognised; if one rank cannot write, all of them raise an error.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.io import TorchCheckpointIO

from autotimm.distributed.gather import from_all_ranks
from autotimm.files import urls
from autotimm.files.atomic import whole_file
from autotimm.structures import InputError
from autotimm.tasks.checkpoint import read_checkpoint

COMPLETE = "complete.json"
"""The description of a checkpoint that is a folder: ``saved``, the time in seconds since 1970;
``step``, the number of optimizer steps; ``files``, the bytes of every other file."""


_KINDS = {
    "pytorch-lightning_version": str,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}


class SaveError(InputError):
    """A checkpoint cannot be written. An older one with its name stays as it is."""


class PlainCheckpointIO(TorchCheckpointIO):
    """Writes and reads Lightning's checkpoint files, with errors of one line.

    On a local disk, a file is written under a temporary name, synced and renamed, so that a crash,
    a kill or a full disk leaves the old file. URLs are written by Lightning.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint; SaveError if that fails."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(target) as file:
                torch.save(checkpoint, file)
            sync_folder(target.parent)
        except (OSError, RuntimeError) as error:
            raise SaveError(f"cannot write the checkpoint {target}: {_reason(error)}") from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """As :func:`read_checkpoint`, for any ``weights_only``.

        Raises:
            InputError: the file cannot be read safely, or a trainer did not save it.
        """
        checkpoint = read_checkpoint(path, map_location)
        if "pytorch-lightning_version" not in checkpoint:
            raise InputError(
                f"{urls.shown(str(path))} was not saved by a trainer: it holds weights alone"
            )
        _check_kinds(urls.shown(str(path)), checkpoint)
        return checkpoint


def _check_kinds(path: str | Path, checkpoint: dict[str, Any]) -> None:
    """Raise InputError if a key of Lightning's has a value of the wrong type."""
    wrong = [
        key for key, kind in _KINDS.items() if not isinstance(checkpoint.get(key, kind()), kind)
    ]
    loops = {} if "loops" in wrong else checkpoint.get("loops", {})
    wrong += [name for name, state in loops.items() if not isinstance(state, dict)]
    if wrong:
        raise InputError(
            f"{path} is damaged: its entry {wrong[0]!r} is not what a trainer saves there"
        )


@contextmanager
def whole_folder(path: Path, step: int) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to ``path`` if the block succeeds on every rank.

    All ranks enter the block and write into the same folder. The first rank creates it, writes
    ``complete.json``, syncs it and renames it. An existing folder with this name is replaced.

    Args:
        path: of the checkpoint, the same on all ranks.
        step: optimizer steps taken.

    Raises:
        SaveError: on all ranks, if one of them cannot write.
    """
    first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    temporary = path.with_name(f".{path.name}.new.tmp")
    with on_all_ranks(path):
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    with on_all_ranks(path):
        yield temporary
    with on_all_ranks(path):
        if first:
            files = [one for one in sorted(temporary.rglob("*")) if one.is_file()]
            sizes = {one.relative_to(temporary).as_posix(): one.stat().st_size for one in files}
            complete = {"saved": time.time(), "step": step, "files": sizes}
            put_folder(temporary, path, orjson.dumps(complete))


def copy_folder(source: Path, path: Path) -> None:
    """Copy a checkpoint that is a folder to ``path``, first under a temporary name."""
    temporary = path.with_name(f".{path.name}.new.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, ignore=lambda *_: [COMPLETE])
    put_folder(temporary, path, (source / COMPLETE).read_bytes())


def put_folder(temporary: Path, path: Path, complete: bytes) -> None:
    """Sync a folder to the disk and rename it, replacing an existing folder with this name.

    Args:
        temporary: ``.<name>.new.tmp`` beside ``path``. If a process is killed after syncing,
            ``resume.newest`` renames it.
        path: the new name.
        complete: the content of ``complete.json``, which is written last.
    """
    old = path.with_name(f".{path.name}.old.tmp")
    files = [one for one in temporary.rglob("*") if one.is_file()]
    for one in files:
        with one.open("rb") as file:
            os.fsync(file.fileno())
    with whole_file(temporary / COMPLETE) as file:
        file.write(complete)
    for inner in {one.parent for one in files} | {temporary}:
        sync_folder(inner)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def on_all_ranks(path: str | Path) -> Iterator[None]:
    """Raise SaveError on all ranks if writing a checkpoint in the block fails on any of them.

    Otherwise the ranks without an error would wait for the others until the timeout. All ranks
    enter the block, and must not wait for each other in it.

    Args:
        path: of the checkpoint, for the message.
    """
    failure: str | None = None
    cause: Exception | None = None
    try:
        yield
    except dist.DistError:  # the other ranks cannot be reached
        raise
    except (SaveError, OSError, RuntimeError) as error:  # torch.save raises the last on a full disk
        cause = error
        failure = str(error)
        if not isinstance(error, SaveError):
            failure = f"cannot write the checkpoint {path}: {_reason(error)}"
    failures = enumerate(from_all_ranks(failure))
    message = next((f"{f} (rank {r})" if r else f for r, f in failures if f), None)
    if message is not None:
        raise SaveError(message) from cause


def sync_folder(folder: Path) -> None:
    """Sync the names of a folder's files to the disk, which syncing the files does not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    """The system's message, which torch.save replaces by one of its own."""
    first: BaseException | None = error
    while first is not None and not (isinstance(first, OSError) and first.strerror):
        first = first.__cause__ or first.__context__
    return str(getattr(first, "strerror", "")) or next(iter(str(error).splitlines()), "")
