"""Find the checkpoint to resume a run from."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from autotimm.checkpoints.storage import COMPLETE, check_folder, read_complete
from autotimm.files.checksums import DamagedError, check

STATE = "autotimm"
"""The key in a checkpoint for the state that Lightning does not save."""


def newest(folder: str | Path) -> Path | None:
    """The newest whole checkpoint of a run, a file or a folder, from which training can resume.

    The newest is the one of the highest epoch and step. It warns of newer ones that are damaged,
    that is, truncated or with changed bytes. Checkpoints with weights alone do not count. It reads
    the returned file completely, and only little of the others.

    Args:
        folder: of the run, or its ``checkpoints``.
    """
    folder = Path(folder)
    for path in [*folder.glob(".*.ckpt.new.tmp"), *folder.glob("checkpoints/.*.ckpt.new.tmp")]:
        _finish(path)
    paths = [*folder.glob("*.ckpt"), *folder.glob("checkpoints/*.ckpt")]
    real = {path.resolve() for path in paths if not path.name.startswith(".") and path.exists()}
    candidates: list[tuple[tuple[int, int], Path]] = []
    for path in real:
        try:
            done = _progress(path)
        # torch raises a different exception for each kind of unreadable file.
        except Exception as error:
            rank_zero_warn(f"{path} is damaged and left aside ({_one_line(error)})")
            continue
        if done is not None:
            candidates.append((done, path))
    for _, path in sorted(candidates, reverse=True):
        if damage := damage_of(path):
            rank_zero_warn(f"{path} is damaged and left aside ({damage})")
        else:
            return path
    return None


def _finish(temporary: Path) -> None:
    """Rename a complete temporary folder of ``whole_folder`` if a process was killed before it.

    This happens if the folder that it replaces had already been moved away.
    """
    target = temporary.with_name(temporary.name.removeprefix(".").removesuffix(".new.tmp"))
    if (temporary / COMPLETE).is_file() and not target.exists():
        try:
            temporary.rename(target)
        except OSError as error:  # a disk that may only be read
            rank_zero_warn(f"{temporary} is a checkpoint, but cannot be renamed: {error.strerror}")


def _progress(path: Path) -> tuple[int, int] | None:
    """The epoch and step of a checkpoint, by which the newest is found; None if no run can resume
    from it.

    No clock counts: those of nodes differ, and any may be set back.

    Raises:
        Exception: the file is damaged where it holds these.
    """
    if path.is_dir():
        complete = read_complete(path)
        return int(complete.get("epoch", 0)), int(complete["step"])
    with zipfile.ZipFile(path) as archive:
        # Reading compares the CRC. Otherwise a changed step would hide that this is the newest.
        for name in archive.namelist():
            if name.endswith("/data.pkl"):
                archive.read(name)
    content: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if not isinstance(content, dict) or not {"loops", "optimizer_states"} <= content.keys():
        return None
    return int(content.get("epoch", 0)), int(content.get("global_step", 0))


def damage_of(path: Path) -> str | None:
    """A description of the damage to a checkpoint's bytes; None if there is none."""
    try:
        if path.is_dir():
            check_folder(path)
        else:
            with path.open("rb") as file:
                check(file)
    except (DamagedError, OSError) as error:
        return _one_line(error)
    return None


def _one_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
