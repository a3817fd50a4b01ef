"""Curves of precision over recall, and a matrix of what is taken for what, as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from autotimm.evaluation.report import KINDS, Report
from autotimm.files.atomic import whole_file
from autotimm.files.shortage import reason
from autotimm.structures import InputError
from autotimm.visualize import class_colour

_MOST_CURVES = 20  # of single classes: more cannot be told apart
_MOST_CLASSES = 40  # on a side of the matrix: more cannot be read


def precision_recall(report: Report) -> Figure:
    """A panel for boxes and one for masks: the mean over classes at three IoUs, and each class at
    IoU 0.5 (the 20 with the most instances)."""
    figure = Figure(figsize=(8.5 * len(report.evaluations), 5.5), layout="constrained")
    recall = np.linspace(0, 1, 101)
    axes = figure.subplots(1, len(report.evaluations), squeeze=False)[0]
    for panel, (kind, evaluation) in zip(axes, report.evaluations.items(), strict=True):
        precision = np.where(evaluation.precision < 0, np.nan, evaluation.precision)
        seen = [k for k, one in enumerate(evaluation.classes) if one.instances]
        common = sorted(seen, key=lambda k: -evaluation.classes[k].instances)[:_MOST_CURVES]
        for k in sorted(common):
            colour = tuple(0.75 * part / 255 for part in class_colour(k))  # darker, on white
            label = f"{report.names[k]}: {evaluation.classes[k].ap50:.2f}"
            panel.plot(recall, precision[0, :, k], color=colour, linewidth=0.9, label=label)
        for at, style in ((0, "-"), (5, "--"), (8, ":")):
            if seen:
                mean = precision[at][:, seen].mean(axis=1)
                label = f"all classes, IoU {0.5 + 0.05 * at:.2f}: {mean.mean():.2f}"
                panel.plot(recall, mean, style, color="black", linewidth=2, label=label)
        panel.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        panel.set_title(f"{KINDS[kind]}; classes and their AP at IoU 0.50")
        panel.grid(alpha=0.3)
        if seen:
            legend = panel.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
            for text in legend.get_texts():
                text.set_parse_math(False)  # a class may be called $x$
    return figure


def confusion(report: Report) -> Figure:
    """Rows the truth, columns what was found, in shares of a row; at most 40 classes, those with
    the most confusions. Counts are written into matrices of up to 12."""
    matrix = report.errors.matrix.astype(np.float64)
    names = [*report.names, "nothing"]
    count = len(names) - 1
    wrong = matrix.sum(axis=1) + matrix.sum(axis=0) - 2 * matrix.diagonal()
    # What neither is there nor was found says nothing.
    there = [k for k in range(count) if matrix[k].any() or matrix[:, k].any()]
    kept = sorted(sorted(there, key=lambda k: -wrong[k])[:_MOST_CLASSES])
    shown = [*kept, count]
    part = matrix[np.ix_(shown, shown)]
    # A row's shares are of all that is there, also of what fell to classes that are not shown.
    shares = part / np.maximum(matrix[shown].sum(axis=1, keepdims=True), 1)
    side = max(4.5, 1.5 + 0.32 * len(shown))
    figure = Figure(figsize=(side + 1.5, side), layout="constrained")
    panel = figure.subplots()
    picture = panel.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(picture, ax=panel, label="share of the row")
    ticks = range(len(shown))
    panel.set_xticks(ticks, [names[k] for k in shown], rotation=90, parse_math=False)
    panel.set_yticks(ticks, [names[k] for k in shown], parse_math=False)
    panel.set(xlabel="found", ylabel="truth")
    left_out = len(there) - len(kept)
    more = f"; {left_out} classes with fewer confusions left out" if left_out else ""
    kind = KINDS[list(report.evaluations)[-1]]
    panel.set_title(f"{kind} IoU 0.5, scores from {report.least_score:g}{more}", fontsize=9)
    if len(shown) <= 12:
        for row in ticks:
            for column in ticks:
                ink = "white" if shares[row, column] > 0.6 else "black"
                text = f"{part[row, column]:.0f}"
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
