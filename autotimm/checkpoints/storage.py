"""How the trainer writes and reads its checkpoints: whole or not at all, plain values only.

Invariants: what has a checkpoint's name is whole, whatever died while it was written; a folder that
is one (of strategies that shard) says in ``complete.json`` what belongs to it, so that a copy that
was cut off is told from it; where one rank cannot write, all of them hear of it.
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

from autotimm.files import urls
from autotimm.files.atomic import whole_file
from autotimm.structures import InputError
from autotimm.tasks.checkpoint import read_checkpoint

COMPLETE = "complete.json"
"""In a folder that is a checkpoint: when it was saved (``saved``, seconds since 1970), after which
step (``step``) and how many bytes every other file in it has (``files``)."""


_KINDS = {
    "pytorch-lightning_version": str,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}


class SaveError(InputError):
    """A checkpoint could not be written; the one that had its name before is as it was."""


class PlainCheckpointIO(TorchCheckpointIO):
    """Lightning's files, with errors of one line.

    On a local disk a file is written beside its name, synced and renamed: a crash, a kill or a full
    disk leaves the one that was there. Elsewhere it is written as Lightning does.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Raises SaveError where it cannot be written."""
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
        """As :func:`read_checkpoint`, whatever ``weights_only`` says."""
        checkpoint = read_checkpoint(path, map_location)
        if "pytorch-lightning_version" not in checkpoint:
            raise InputError(
                f"{urls.shown(str(path))} was not saved by a trainer: it holds weights alone"
            )
        _check_kinds(urls.shown(str(path)), checkpoint)
        return checkpoint


def _check_kinds(path: str | Path, checkpoint: dict[str, Any]) -> None:
    """Raises InputError where Lightning would stumble over what is under one of its keys."""
    wrong = [
        key for key, kind in _KINDS.items() if not isinstance(checkpoint.get(key, kind()), kind)
    ]
    loops = {} if "loops" in wrong else checkpoint.get("loops", {})
    wrong += [name for name, state in loops.items() if not isinstance(state, dict)]
    if wrong:
        raise InputError(
            f"{path} is damaged: what it has under {wrong[0]!r} is not what a trainer saves there"
        )


@contextmanager
def whole_folder(path: Path, step: int) -> Iterator[Path]:
    """A folder beside ``path`` that takes its name when the block ends well on every rank.

    All ranks enter, and write into the one folder; the first rank makes it, describes it in
    ``complete.json``, syncs and renames it. A folder that has the name already is replaced.

    Args:
        path: of the checkpoint, the same on all ranks.
        step: optimizer steps that the training has taken.

    Raises:
        SaveError: on all ranks, where one of them could not write.
    """
    first = not _distributed() or dist.get_rank() == 0
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
            told = {"saved": time.time(), "step": step, "files": sizes}
            put_folder(temporary, path, orjson.dumps(told))


def copy_folder(source: Path, path: Path) -> None:
    """Writes a checkpoint that is a folder once more, as ``path``, beside its name at first."""
    temporary = path.with_name(f".{path.name}.new.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, ignore=lambda *_: [COMPLETE])
    put_folder(temporary, path, (source / COMPLETE).read_bytes())


def put_folder(temporary: Path, path: Path, complete: bytes) -> None:
    """Gives a folder its name, once all of it is on the disk; one that has the name is replaced.

    Args:
        temporary: ``.<name>.new.tmp`` beside it, from where ``resume.newest`` would finish it.
        path: the name.
        complete: the content of its ``complete.json``, which is written last.
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
    """Where writing a checkpoint fails in the block on some ranks, SaveError is raised on all.

    Otherwise those that did not fail would wait for the others until the timeout. All ranks enter;
    in the block itself none may wait for another.

    Args:
        path: of the checkpoint, for the message.
    """
    failure: str | None = None
    cause: Exception | None = None
    try:
        yield
    except dist.DistError:  # there is no one to tell any more
        raise
    except (SaveError, OSError, RuntimeError) as error:  # the last is torch.save's, of a full disk
        cause = error
        failure = str(error)
        if not isinstance(error, SaveError):
            failure = f"cannot write the checkpoint {path}: {_reason(error)}"
    failures = [failure]
    if _distributed():
        failures = [None] * dist.get_world_size()
        dist.all_gather_object(failures, failure)
    told = next((f"{f} (rank {r})" if r else f for r, f in enumerate(failures) if f), None)
    if told is not None:
        raise SaveError(told) from cause


def sync_folder(folder: Path) -> None:
    """Has the names in a folder reach the disk, as fsync has a file's content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    """The system's own words, which torch.save hides behind an error of its own."""
    first: BaseException | None = error
    while first is not None and not (isinstance(first, OSError) and first.strerror):
        first = first.__cause__ or first.__context__
    return str(getattr(first, "strerror", "")) or next(iter(str(error).splitlines()), "")


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
