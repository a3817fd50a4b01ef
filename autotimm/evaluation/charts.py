"""Curves of precision over recall, and a matrix of what is taken for what, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from autotimm.evaluation.confusions import confusions
from autotimm.evaluation.precision_recall import RECALL, curves
from autotimm.evaluation.report import KINDS, Report
from autotimm.files.atomic import whole_file
from autotimm.files.shortage import reason
from autotimm.structures import InputError

_OF_ALL = "darkgray"  # the mean over all classes, on which those of single classes show


def precision_recall(report: Report) -> Figure:
    """A panel for boxes and one for masks, each with the curves of ``precision_recall.curves``."""
    figure = Figure(figsize=(8.5 * len(report.evaluations), 5.5), layout="constrained")
    axes = figure.subplots(1, len(report.evaluations), squeeze=False)[0]
    for panel, (kind, evaluation) in zip(axes, report.evaluations.items(), strict=True):
        for curve in curves(evaluation, report.names):
            look: dict[str, Any] = {"color": _OF_ALL, "linewidth": 4, "zorder": 2}  # at the bottom
            if curve.colour is not None:
                shade = tuple(part / 255 for part in curve.colour)
                # Whole lines below dashed ones, and wider: where they coincide, both show.
                width, place = (1.5, 4) if curve.dash else (2.5, 3)
                look = {"color": shade, "linewidth": width, "zorder": place}
            style = (-curve.offset, curve.dash) if curve.dash else "-"
            panel.plot(RECALL, curve.precision, linestyle=style, label=curve.label, **look)
        panel.set(xlim=(0, 1), ylim=(0, 1.05), xlabel="recall", ylabel="precision")
        panel.set_title(f"{KINDS[kind]}; classes and their AP at IoU 0.50")
        panel.grid(alpha=0.3)
        if panel.lines:
            legend = panel.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
            for text in legend.get_texts():
                text.set_parse_math(False)  # a class may be called $x$
            for key in legend.legend_handles:
                if isinstance(key, Line2D) and key.get_color() != _OF_ALL:
                    key.set_linestyle("-")  # a class is known by its colour
    return figure


def confusion(report: Report) -> Figure:
    """Rows the truth, columns what was found, in shares of a row, as ``confusions.confusions`` has
    them. Counts are written into matrices of up to 12."""
    names, counts, shares, left_out = confusions(report.errors.matrix, report.names)
    side = max(4.5, 1.5 + 0.32 * len(names))
    figure = Figure(figsize=(side + 1.5, side), layout="constrained")
    panel = figure.subplots()
    picture = panel.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(picture, ax=panel, label="share of the row")
    ticks = range(len(names))
    panel.set_xticks(ticks, names, rotation=90, parse_math=False)
    panel.set_yticks(ticks, names, parse_math=False)
    panel.set(xlabel="found", ylabel="truth")
    more = f"; {left_out} classes with fewer confusions left out" if left_out else ""
    kind = KINDS[list(report.evaluations)[-1]]
    panel.set_title(f"{kind} IoU 0.5, scores from {report.least_score:g}{more}", fontsize=9)
    if len(names) <= 12:
        for row in ticks:
            for column in ticks:
                ink = "white" if shares[row, column] > 0.6 else "black"
                text = f"{counts[row, column]:.0f}"
                panel.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG; InputError where that fails."""
    FigureCanvasAgg(figure)  # no window system, no global state
    try:
        with whole_file(path) as file:
            figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}") from error
