"""The line about a checkpoint that is not there, which names others of its run.

It is also asked for before torch is imported, so that nothing here needs it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

_BEST, _LAST, _RECORD = "best.ckpt", "last.ckpt", "run.json"


def missing_checkpoint(path: str) -> str:
    """A line that says that there is no checkpoint at a path, and which ones there are instead.

    They are the newest one in the same folder, and the best one of the run that this folder's run
    went on from, which a run without a validation of its own leaves the best.

    Args:
        path: as it was given.
    """
    folder = Path(path).parent
    try:
        newest, best = _newest(folder), _best_of_earlier(folder)
    except (OSError, ValueError):  # a folder that cannot be read, a path with a null character
        newest = best = None
    others = [str(newest)] if newest else []
    if best and best != newest:
        others.append(f"{best} of the run that it went on from")
    instead = f": there is {', and '.join(others)}" if others else ""
    return f"there is no checkpoint at {path}{instead}"


def run_for_checkpoint(path: str, resumes: bool = False) -> str | None:
    """A line about the folder of a run that was given for one of its checkpoints; None for any
    other path.

    Args:
        path: as it was given; something is there.
        resumes: whether to resume from it, for which the newest checkpoint is named and not the
            best.
    """
    folder = Path(path, "checkpoints")
    try:
        if not folder.is_dir():
            return None
        best = folder / _BEST
        inside = best if best.exists() and not resumes else _newest(folder)
    except (OSError, ValueError):
        return None
    return f"{path} is the folder of a run: give {inside or 'a checkpoint'}"


def _newest(folder: Path) -> Path | None:
    """The newest checkpoint in a run's folder of checkpoints: the one of the highest step."""
    if (last := folder / _LAST).exists():
        return last
    steps = {int(found[1]): one for one in folder.glob("step_*.ckpt") if (found := _step(one.name))}
    return steps[max(steps)] if steps else None


def _step(name: str) -> re.Match[str] | None:
    return re.fullmatch(r"step_(\d+)\.ckpt", name)


def _best_of_earlier(folder: Path) -> Path | None:
    """The best checkpoint of the run that the run of a folder of checkpoints went on from."""
    record = folder.parent / _RECORD
    content = json.loads(record.read_bytes()) if record.is_file() else None
    earlier = content.get("from") if isinstance(content, dict) else None
    if not isinstance(earlier, str) or Path(earlier).parent == folder:
        return None
    best = Path(earlier).with_name(_BEST)
    return best if best.exists() else None
