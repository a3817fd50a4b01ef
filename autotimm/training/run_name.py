"""The name that a user gives a run: ``--out NAME``. A value with a slash is a folder of runs.

The command line asks for it before torch is imported, so that nothing here needs it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from autotimm.structures import InputError

NEWEST = "last"
"""The name of the link beside the runs to the newest one, which ``newest_link.py`` makes."""
_RECORD, _CHECKPOINTS = "run.json", "checkpoints"


def is_name(text: str) -> bool:
    """Whether a value of ``--out`` is the name of a run, and no folder."""
    slashes = {"/", os.sep, os.altsep or "/"}
    return text not in ("", ".", "..") and not any(slash in text for slash in slashes)


def check_name(root: str | Path, name: str) -> None:
    """Check that a run may have this name; :func:`check_free` asks for a run that has it.

    Args:
        root: the folder of the runs.
        name: of the run's folder in it.

    Raises:
        InputError: it is no name, or it may also mean a folder of runs.
    """
    if not is_name(name) or name.startswith("-") or not name.isprintable():
        raise InputError(f"run_name={name!r} must be the name of a folder, without a slash")
    run = Path(root, name)
    if name == NEWEST:
        raise InputError(f"--out {name}: {run} leads to the newest run: give another name")
    if Path(name).resolve() == Path(root).resolve() or _holds_runs(Path(name)):
        raise InputError(
            f"--out {name} may mean the folder of runs {name}/ or a run of this name in "
            f"{Path(root)}: write {name}/ for the folder, or give another name"
        )


def check_free(root: str | Path, name: str) -> None:
    """Check that no run has this name.

    Args:
        root: the folder of the runs.
        name: of a new run.

    Raises:
        InputError: a run has it.
    """
    run = Path(root, name)
    if (run / _RECORD).exists() or (run / _CHECKPOINTS).exists():
        raise InputError(
            f"--out {name}: {run} is a run already: leave out --out to go on with it (--ckpt_path "
            f"{run / _CHECKPOINTS / 'last.ckpt'}), or give another name"
        )


def launch_of(root: str | Path, name: str) -> str | None:
    """The ``launch_id`` in ``run.json`` of the run of a name; None if there is none."""
    try:
        content = json.loads(Path(root, name, _RECORD).read_bytes())
    except (OSError, ValueError):  # no run, or none that says it
        return None
    return content.get("launch_id") if isinstance(content, dict) else None


def _holds_runs(folder: Path) -> bool:
    return any(True for _ in folder.glob(f"*/{_RECORD}"))
