"""The rows of ``metrics.csv`` of a run, after those of the runs that it was resumed from.

A resumed run has a folder of its own, whose ``run.json`` names the checkpoint that it went on from.
Invariant: a step that two runs took comes from the later one alone.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from autotimm.structures import InputError

METRICS = "metrics.csv"
_RECORD = "run.json"  # training/run_record.py, which is above this package, writes it

Row = Mapping[str, Any]


@dataclass(slots=True)
class History:
    """What was logged in a run and in those before it.

    Attributes:
        rows: of all of them, the earliest first, each with a number as ``step`` and as ``epoch``.
        resumed: the number of steps after which a run was resumed, by the name of its folder.
        missing: the checkpoint that the earliest run went on from, if there are no metrics beside
            it; None otherwise.
    """

    rows: list[Row]
    resumed: dict[str, float] = field(default_factory=dict)
    missing: str | None = None


def read_history(path: Path, apart: Collection[Path] = ()) -> History:
    """Reads ``metrics.csv`` of a run and of the runs that it was resumed from, as far as they are
    there.

    Args:
        path: of the run's file.
        apart: folders of runs that are left out, with those before them.

    Raises:
        InputError: a file cannot be read, or is no text.
    """
    found = History(_rows(path))
    run = path.parent.resolve()
    known = {run, *(one.resolve() for one in apart)}
    while path.name == METRICS and (checkpoint := _resumed_from(run)) is not None:
        earlier = _run_of(checkpoint, run)
        if earlier is None:
            found.missing = checkpoint
            break
        if earlier in known:
            break
        known.add(earlier)
        begin = _first_step(checkpoint, found.rows)
        before = [row for row in _rows(earlier / METRICS) if float(row["step"]) < begin]
        found.rows = [*before, *found.rows]
        found.resumed = {earlier.name: begin, **found.resumed}
        run = earlier
    return found


def number(text: Any) -> float | None:
    """The finite number that a cell holds; None for any other content."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _rows(path: Path) -> list[Row]:
    """The rows of a table that have a step and an epoch: a file may just be written, or a
    spreadsheet may have saved it."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "is no table of metrics"
        raise InputError(f"{path}: {reason}") from error
    return [row for row in rows if None not in map(number, (row.get("step"), row.get("epoch")))]


def _resumed_from(run: Path) -> str | None:
    """The checkpoint of another run that a run went on from; None if it is not known."""
    try:
        content = orjson.loads((run / _RECORD).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    if not isinstance(content, dict):
        return None
    checkpoint = content.get("continues", content.get("from"))
    # A run that its launch started again goes on from a checkpoint of its own.
    own = isinstance(checkpoint, str) and Path(checkpoint).parent.parent.resolve() == run
    return checkpoint if isinstance(checkpoint, str) and not own else None


def _run_of(checkpoint: str, run: Path) -> Path | None:
    """The folder of the run that saved a checkpoint; None if it has no metrics.

    Args:
        checkpoint: its path when ``run`` began; a folder of runs may have moved since.
        run: the run that went on from it.
    """
    earlier = Path(checkpoint).absolute().parent.parent
    moved = run.parent / earlier.name if earlier.parent.name == run.parent.name else earlier
    there = (one.resolve() for one in (moved, earlier) if (one / METRICS).is_file())
    return next(there, None)


def _first_step(checkpoint: str, later: Collection[Row]) -> float:
    """The first step, from 0 on, that a run took after it went on from a checkpoint."""
    if named := re.fullmatch(r"step_(\d+)\.ckpt", Path(checkpoint).name):
        return float(named[1])
    return min((float(row["step"]) for row in later), default=math.inf)
