"""``runs/last``: a link beside the runs that leads to the newest one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from autotimm.training.run_name import NEWEST as NEWEST


def link_newest(root: str | Path, run: Path) -> None:
    """Make ``root / NEWEST`` a link to a run's folder.

    Another file of that name, and a link out of ``root``, are the user's and stay. Where links
    cannot be made, as on FAT, it warns and goes on. A run that is not below ``root``, as a logger
    of the user's own may place it, gets none.

    Args:
        root: the folder that contains the runs.
        run: the folder of the newest one.
    """
    link, inside = Path(root, NEWEST), Path(root).resolve()
    if inside not in run.resolve().parents:
        return
    if os.path.lexists(link) and not (link.is_symlink() and inside in link.resolve().parents):
        rank_zero_warn(f"{link} is no link to a run, and stays: it does not lead to {run}")
        return
    # Another run may make the link at the same time: it is replaced in one step.
    temporary = link.with_name(f".{NEWEST}.{os.getpid()}.tmp")
    try:
        temporary.symlink_to(os.path.relpath(run, root))
        temporary.replace(link)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        rank_zero_warn(f"{link} cannot lead to {run} ({error.strerror}), and the run goes on")


def is_link_to_newest(root: str | Path, path: Path) -> bool:
    """Whether a path leads through the link of :func:`link_newest`: not to a run of its own."""
    link = Path(root, NEWEST)
    return link in (path, *path.parents) and link.is_symlink()


def resolve_link(path: str | Path) -> Path:
    """A path with the link replaced by the run's folder that it leads to now.

    The link of a run's own root leads to the run itself as soon as it trains.
    """
    path = Path(path)
    if any(one.name == NEWEST and one.is_symlink() for one in path.parents):
        return path.resolve()
    return path
