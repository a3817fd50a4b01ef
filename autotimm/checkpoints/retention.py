"""Which checkpoints of a run are kept, and how the others go.

Invariant: at every moment, whatever is killed, the links lead to whole checkpoints.
"""

from __future__ import annotations

import math
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from autotimm.checkpoints.storage import copy_folder
from autotimm.files.atomic import whole_file

Scores = Mapping[str, float | None]  # file name -> the metric, None before validation; oldest first


def kept(scores: Scores, last: int, best: int, mode: str) -> list[str]:
    """The checkpoints to keep: the best ones, best first, and then the newest, newest first.

    Of equal scores the older one counts as better; one that is no number as worse than any.

    Args:
        scores: of all checkpoints, oldest first.
        last: newest ones to keep; -1 for all.
        best: best ones to keep.
        mode: "max" or "min", what a good score is.
    """
    sign = -1 if mode == "max" else 1
    scored = {
        name: math.inf if math.isnan(score) else sign * score
        for name, score in scores.items()
        if score is not None
    }
    newest = list(scores)[::-1]
    ranked = sorted(scored, key=scored.__getitem__)[:best]
    return list(dict.fromkeys(ranked + (newest if last < 0 else newest[:last])))


def point(link: Path, name: str) -> None:
    """Has ``link`` lead to its neighbour ``name``, at once; a copy where links cannot be made."""
    temporary = link.with_name(f".{link.name}.{secrets.token_hex(4)}.tmp")
    target = link.parent / name
    try:
        temporary.symlink_to(name)
    except OSError:
        if target.is_dir():
            copy_folder(target, link)
            return
        with whole_file(link) as copy, target.open("rb") as file:
            shutil.copyfileobj(file, copy)
    else:
        temporary.replace(link)


def remove(path: Path) -> None:
    """Removes a checkpoint; a folder not bit by bit under its name. Warns where it cannot."""
    try:
        if path.is_dir():
            moved = path.with_name(f".{path.name}.old.tmp")
            shutil.rmtree(moved, ignore_errors=True)
            path.rename(moved)
            shutil.rmtree(moved)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        rank_zero_warn(f"{path} is not needed any more, but cannot be removed: {error.strerror}")


def clear(folder: Path) -> None:
    """Removes what processes that were killed in the middle of a save have left."""
    for path in folder.glob(".*.ckpt.*.tmp"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
