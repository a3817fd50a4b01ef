"""The one line of a progress bar, and what it says first in a narrow terminal."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.text import Text

_LEAST_BAR, _MOST_BAR = 8, 24  # columns
_GAP = "  "  # between parts


def line(
    width: int,
    title: str,
    done: int,
    total: float,
    parts: Sequence[str],
    marks: tuple[str, str] = ("━", "━"),
    bar: bool = True,
) -> Text:
    """A line of at most ``width - 1`` columns: some terminals break a line that fills the last one.

    Title and counts come first; parts that do not fit are left out, and so is the bar.

    Args:
        width: of the terminal, in columns.
        title: what is done.
        done: how much of it.
        total: how much there is; infinite if that is not known, and then there is no bar.
        parts: from the most important one on.
        marks: what is drawn for what is done, and for what is left.
        bar: whether to draw a bar of these.
    """
    room = width - 1
    known = math.isfinite(total)
    count = f"{done:,}/{int(total):,}" if known else f"{done:,}"
    head = f"{title}{_GAP}{count}"
    if cell_len(head) > room:
        return Text(set_cell_size(head, max(room, 0)).rstrip())
    left = room - cell_len(head)
    bar &= known
    least = len(_GAP) + _LEAST_BAR if bar else 0
    shown = []
    for part in parts:
        needed = len(_GAP) + cell_len(part)
        if needed <= left - least:
            shown.append(part)
            left -= needed
    made = Text(f"{title}{_GAP}")
    if bar and left >= least:
        long = min(left - len(_GAP), _MOST_BAR)
        full = round(long * min(done / max(total, 1), 1))
        made.append(marks[0] * full, "magenta").append(marks[1] * (long - full), "bright_black")
        made.append(_GAP)
    return made.append(_GAP.join([count, *shown]))


def epochs_in_all(
    epoch: int,
    max_epochs: int | None,
    steps_left: float,
    batches_left: float,
    batches: float,
    accumulated: int = 1,
) -> int | None:
    """The number of epochs that a fit will have begun at its end; None if that is not known.

    Args:
        epoch: the epoch that runs, from 0 on.
        max_epochs: of the trainer; None or -1 for no limit.
        steps_left: optimizer steps to the trainer's ``max_steps``; infinite without it.
        batches_left: batches of this epoch that have not begun.
        batches: of a whole epoch; infinite if that is not known.
        accumulated: batches to an optimizer step.
    """
    limits = [max_epochs] if max_epochs is not None and max_epochs >= 0 else []
    if math.isfinite(steps_left) and math.isfinite(batches):
        beyond = steps_left - math.ceil(batches_left / accumulated)
        steps = max(math.ceil(batches / accumulated), 1)
        limits.append(epoch + 1 + max(math.ceil(beyond / steps), 0))
    return max(min(limits), epoch + 1) if limits else None


def epochs_of(trainer: Any, batches_left: float) -> int | None:
    """:func:`epochs_in_all` of a fit, of whose epoch so many batches have not begun."""
    return epochs_in_all(
        trainer.current_epoch,
        trainer.max_epochs,
        steps_left(trainer),
        batches_left,
        trainer.num_training_batches,
        trainer.accumulate_grad_batches,
    )


def steps_left(trainer: Any) -> float:
    """The optimizer steps to a trainer's ``max_steps``; infinite without it."""
    return math.inf if trainer.max_steps < 0 else trainer.max_steps - trainer.global_step


def can_redraw() -> bool:
    """Whether stdout can draw a line again: no file can, nor a terminal without a cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def clock(seconds: float) -> str:
    """A length of time as people write it: ``0:07``, ``2:13``, ``1:02:10``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
