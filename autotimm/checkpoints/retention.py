"""Decide which checkpoints of a run to keep, set its links, and remove the others.

Invariant: the links lead to whole checkpoints at any time, even if the process is killed.
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
    """The checkpoints to keep: the best ones, best first, then the newest ones, newest first.

    Of checkpoints with equal scores, the older one is better. NaN is worse than any other score.

    Args:
        scores: of all checkpoints, oldest first.
        last: the number of newest ones to keep; -1 for all.
        best: the number of best ones to keep.
        mode: "max" if large scores are good, "min" if small ones are.
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
    """Make ``link`` point to ``name`` in the same folder, atomically.

    It becomes a copy if the file system has no links.
    """
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
        if link.is_dir() and not link.is_symlink():  # a copy, or what a user has made
            remove(link)
        temporary.replace(link)


def remove(path: Path) -> None:
    """Remove a checkpoint, and warn if that fails.

    A folder is renamed first, so that a partly removed one does not look like a checkpoint.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            moved = path.with_name(f".{path.name}.old.tmp")
            shutil.rmtree(moved, ignore_errors=True)
            path.rename(moved)
            shutil.rmtree(moved)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        rank_zero_warn(f"{path} is not needed any more, but cannot be removed: {error.strerror}")


def clear(folder: Path) -> None:
    """Remove temporary files and folders of processes that were killed during a save."""
    for path in folder.glob(".*.ckpt.*.tmp"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
