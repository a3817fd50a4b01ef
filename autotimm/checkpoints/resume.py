"""Which checkpoint a run goes on from."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import orjson
import torch
from lightning.pytorch.utilities import rank_zero_warn

from autotimm.checkpoints.storage import COMPLETE

STATE = "autotimm"
"""The key of a checkpoint under which is what Lightning does not keep."""


def newest(folder: str | Path) -> Path | None:
    """The newest whole checkpoint of a run, a file or a folder, that training can go on from.

    Warns of those that would have been newer and are damaged: cut off, or with bytes that are not
    those that were written. Checkpoints of weights alone do not count. It reads the whole file that
    it returns once; of the others little.

    Args:
        folder: that of the run, or its ``checkpoints``.
    """
    folder = Path(folder)
    for path in [*folder.glob(".*.ckpt.new.tmp"), *folder.glob("checkpoints/.*.ckpt.new.tmp")]:
        _finish(path)
    paths = [*folder.glob("*.ckpt"), *folder.glob("checkpoints/*.ckpt")]
    real = {path.resolve() for path in paths if not path.name.startswith(".") and path.exists()}
    found: list[tuple[float, Path]] = []
    for path in real:
        try:
            saved = _saved(path)
        # For each way in which a file is not what torch reads, it has a class of its own.
        except Exception as error:
            rank_zero_warn(f"{path} is damaged and left aside ({_one_line(error)})")
            continue
        if saved is not None:
            found.append((saved, path))
    for _, path in sorted(found, reverse=True):
        if damage := damage_of(path):
            rank_zero_warn(f"{path} is damaged and left aside ({damage})")
        else:
            return path
    return None


def _finish(temporary: Path) -> None:
    """Gives a folder that ``whole_folder`` has completed its name, if a kill came before that, when
    the folder that it replaces had been moved away."""
    target = temporary.with_name(temporary.name.removeprefix(".").removesuffix(".new.tmp"))
    if (temporary / COMPLETE).is_file() and not target.exists():
        temporary.rename(target)


def _saved(path: Path) -> float | None:
    """When a checkpoint was saved, in seconds since 1970; None if no run goes on from it."""
    if path.is_dir():
        return float(orjson.loads((path / COMPLETE).read_bytes())["saved"])
    content: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if not isinstance(content, dict) or not {"loops", "optimizer_states"} <= content.keys():
        return None
    return float(content.get(STATE, {}).get("saved", path.stat().st_mtime))


def damage_of(path: Path) -> str | None:
    """What is wrong with the bytes of a checkpoint, None if nothing is."""
    if path.is_dir():
        files: dict[str, int] = orjson.loads((path / COMPLETE).read_bytes())["files"]
        for name, size in files.items():
            file = path / name
            if not file.is_file() or file.stat().st_size != size:
                return f"{name} is missing or cut off"
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()  # which torch does not
    except (zipfile.BadZipFile, OSError) as error:
        return _one_line(error)
    return bad and f"{bad} is not what was written"


def _one_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
