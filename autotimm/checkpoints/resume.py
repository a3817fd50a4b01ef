"""Find the checkpoint to resume a run from."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import orjson
import torch
from lightning.pytorch.utilities import rank_zero_warn

from autotimm.checkpoints.storage import COMPLETE

STATE = "autotimm"
"""The key in a checkpoint for the state that Lightning does not save."""


def newest(folder: str | Path) -> Path | None:
    """The newest whole checkpoint of a run, a file or a folder, from which training can resume.

    It warns of newer ones that are damaged, that is, truncated or with changed bytes. Checkpoints
    with weights alone do not count. It reads the returned file completely, and only little of the
    others.

    Args:
        folder: of the run, or its ``checkpoints``.
    """
    folder = Path(folder)
    for path in [*folder.glob(".*.ckpt.new.tmp"), *folder.glob("checkpoints/.*.ckpt.new.tmp")]:
        _finish(path)
    paths = [*folder.glob("*.ckpt"), *folder.glob("checkpoints/*.ckpt")]
    real = {path.resolve() for path in paths if not path.name.startswith(".") and path.exists()}
    candidates: list[tuple[float, Path]] = []
    for path in real:
        try:
            saved = _saved(path)
        # torch raises a different exception for each kind of unreadable file.
        except Exception as error:
            rank_zero_warn(f"{path} is damaged and left aside ({_one_line(error)})")
            continue
        if saved is not None:
            candidates.append((saved, path))
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
        temporary.rename(target)


def _saved(path: Path) -> float | None:
    """The time at which a checkpoint was saved, in seconds since 1970; None if no run can resume
    from it."""
    if path.is_dir():
        return float(orjson.loads((path / COMPLETE).read_bytes())["saved"])
    content: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if not isinstance(content, dict) or not {"loops", "optimizer_states"} <= content.keys():
        return None
    return float(content.get(STATE, {}).get("saved", path.stat().st_mtime))


def damage_of(path: Path) -> str | None:
    """A description of the damage to a checkpoint's bytes; None if there is none."""
    if path.is_dir():
        files: dict[str, int] = orjson.loads((path / COMPLETE).read_bytes())["files"]
        for name, size in files.items():
            file = path / name
            if not file.is_file() or file.stat().st_size != size:
                return f"{name} is missing or cut off"
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()  # torch does not check this
    except (zipfile.BadZipFile, OSError) as error:
        return _one_line(error)
    return bad and f"{bad} is not what was written"


def _one_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
