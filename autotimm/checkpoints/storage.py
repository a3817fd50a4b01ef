"""Write and read the trainer's checkpoints: whole or not at all, and plain values only.

Invariants: a file or folder with a checkpoint's name is whole, even if a process dies while writing
it; a file has a checksum, and a checkpoint that is a folder (of strategies that shard) lists its
files with theirs in ``complete.json``, so that damage and a partial copy can be recognised; what is
written can be read again; if one rank cannot write, all of them raise an error.
"""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import orjson
import torch.distributed as dist
from lightning.pytorch.plugins.io import TorchCheckpointIO

from autotimm.distributed.gather import from_all_ranks
from autotimm.files import urls
from autotimm.files.atomic import whole_file
from autotimm.files.checksums import (
    KEY,
    UNSEALED,
    DamagedError,
    check,
    checksum,
    sealed,
    stated,
)
from autotimm.files.shortage import reason
from autotimm.structures import InputError
from autotimm.tasks.archive import write_archive
from autotimm.tasks.checkpoint import read_checkpoint

COMPLETE = "complete.json"
"""The description of a checkpoint that is a folder: ``saved``, the time in seconds since 1970 (for
people: no decision depends on a clock); ``epoch``; ``step``, the number of optimizer steps;
``files``, the bytes of every other file; ``checksums`` of them."""

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
    a kill or a full disk leaves the old file.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint; SaveError if that fails, or if it could not be read again."""
        name = urls.shown(str(path))
        try:
            if "://" in str(path):
                _write_to_url(checkpoint, str(path))
                return
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(target) as file:
                write_archive(checkpoint, file)
            sync_folder(target.parent)
        except InputError as error:
            raise SaveError(f"the checkpoint {name} is not written: {error}") from error
        except (OSError, RuntimeError) as error:
            raise SaveError(f"cannot write the checkpoint {name}: {_reason(error)}") from error

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


def _write_to_url(checkpoint: dict[str, Any], url: str) -> None:
    content = io.BytesIO()
    write_archive(checkpoint, content)
    files, path = fsspec.core.url_to_fs(url)
    files.makedirs(path.rpartition("/")[0], exist_ok=True)
    with files.transaction:
        files.pipe_file(path, content.getvalue())


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
def whole_folder(path: Path, step: int, epoch: int = 0) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to ``path`` if the block succeeds on every rank.

    All ranks enter the block and write into the same folder. The first rank creates it, writes
    ``complete.json``, syncs it and renames it. An existing folder with this name is replaced.

    Args:
        path: of the checkpoint, the same on all ranks.
        step: optimizer steps taken.
        epoch: epochs finished.

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
            names = {one.relative_to(temporary).as_posix(): one for one in files}
            complete = {
                "saved": time.time(),
                "epoch": epoch,
                "step": step,
                "files": {name: one.stat().st_size for name, one in names.items()},
                "checksums": {name: stated(one) for name, one in names.items()},
                KEY: UNSEALED,
            }
            put_folder(temporary, path, sealed(orjson.dumps(complete)))


def read_complete(path: Path) -> dict[str, Any]:
    """The content of ``complete.json`` of a checkpoint that is a folder.

    Raises:
        DamagedError: its bytes have changed, or it is not what ``whole_folder`` writes.
    """
    content = (path / COMPLETE).read_bytes()
    check(io.BytesIO(content))
    try:
        complete = orjson.loads(content)
        names = [*complete["files"].keys(), *complete.get("checksums", {}).keys()]
        outside = any(Path(name).is_absolute() or ".." in Path(name).parts for name in names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{COMPLETE} is not what was written") from error
    if outside:
        raise DamagedError(f"{COMPLETE} lists files outside the folder")
    return complete


def check_folder(path: Path, wanted: Callable[[str], bool] = lambda _: True) -> None:
    """Compare the files of a checkpoint that is a folder with its ``complete.json``.

    Args:
        path: of the folder.
        wanted: which of the files to compare, by their paths in it.

    Raises:
        DamagedError: a file is missing, or its bytes have changed.
        OSError: a file cannot be read.
    """
    complete = read_complete(path)
    checksums = complete.get("checksums", {})  # older checkpoints have none
    for name, size in complete["files"].items():
        file = path / name
        if not wanted(name):
            continue
        if not file.is_file() or file.stat().st_size != size:
            raise DamagedError(f"{name} is missing or cut off")
        if name in checksums and checksum(file) != checksums[name]:
            raise DamagedError(f"{name} is not what was written")
        if name not in checksums:
            with file.open("rb") as opened:
                check(opened)  # the CRCs of what torch has written


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
    if path.is_symlink():  # even one that leads nowhere; a folder cannot replace it
        path.unlink()
    elif path.exists():
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
    """The system's message, which torch.save replaces by one of its own, and the way out."""
    first: BaseException | None = error
    while first is not None and not (isinstance(first, OSError) and first.strerror):
        first = first.__cause__ or first.__context__
    return reason(first) if isinstance(first, OSError) else next(iter(str(error).splitlines()), "")
