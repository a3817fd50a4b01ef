"""The tables that an evaluation prints: all classes together, class by class, and the mistakes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from autotimm.evaluation.coco_eval import ERRORS
from autotimm.evaluation.report import KINDS, Report

ANY_SCORE = "detections of any score"
"""What AP counts."""
_MOST_CONFUSIONS = 8  # lines, those with the highest numbers


def sure(report: Report) -> str:
    """What confusions, mistakes and pictures count."""
    return f"detections with a score of at least {report.least_score:g}"


def tables(report: Report) -> Group:
    """What to print: AP of all classes, class by class, what the errors cost, and confusions.

    Each table has a line above it that says which detections it counts.
    """
    every = list(report.evaluations.values())
    kinds = [KINDS[kind] for kind in report.evaluations]
    overall = [[name, *(percent(one.stats[name]) for one in every)] for name in every[0].stats]
    columns = [f"{kind} {what}" for kind in kinds for what in ("AP", "AP50")]
    classes = []
    for k, name in enumerate(report.names):
        ones = [evaluation.classes[k] for evaluation in every]
        numbers = [percent(value) for one in ones for value in (one.ap, one.ap50)]
        classes.append([name, str(ones[0].id), f"{ones[0].instances:,}", *numbers])
    lost = [[name, *(percent(one.lost[name]) for one in every)] for name in ERRORS.values()]
    parts: list[RenderableType] = [
        *_table(f"all classes, in %: {ANY_SCORE}", ["", *kinds], overall),
        *_table(
            f"class by class, in %: {ANY_SCORE}", ["class", "id", "instances", *columns], classes
        ),
        *_table(f"AP50 lost to, in %: {ANY_SCORE}", ["", *kinds], lost),
    ]
    if mixed := _confused(report):
        head = f"confusions, in objects: {sure(report)} ({kinds[-1]} IoU 0.5)"
        parts += _table(head, ["truth", "found as", "objects"], mixed[:_MOST_CONFUSIONS], words=2)
        if (more := len(mixed) - _MOST_CONFUSIONS) > 0:
            parts.append(Text(f"metrics.json has the other {more:,} pairs of classes"))
    return Group(*parts)


def _confused(report: Report) -> list[list[str]]:
    """The pairs of classes that are taken for each other: truth, found, how often; most first."""
    names, matrix = report.names, report.errors.matrix[:-1, :-1]
    pairs = [
        (-int(matrix[i, j]), names[i], names[j]) for i, j in np.argwhere(matrix).tolist() if i != j
    ]
    return [[truth, found, f"{-times:,}"] for times, truth, found in sorted(pairs)]


def _table(
    head: str, columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1
) -> tuple[RenderableType, RenderableType]:
    """A line, and the table that it says something about, whose first columns are words."""
    table = Table(*columns, box=SIMPLE)
    for row in rows:
        table.add_row(*map(escape, row))
    for column in table.columns[words:]:
        column.justify = "right"
    table.columns[0].no_wrap = True
    return Text(head), table


def percent(share: float) -> str:
    """A share in percent; "-" for -1, where nothing could be counted."""
    return f"{100 * share:.1f}" if share >= 0 else "-"
