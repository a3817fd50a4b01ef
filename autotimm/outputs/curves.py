"""``results.png``: how losses, learning rates and AP of one or several runs went, over epochs.

The figures are those of ``metrics.csv``. matplotlib is imported where a picture is drawn.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from autotimm import visualize
from autotimm.outputs.loggers import one_line, run_folder, sync
from autotimm.structures import InputError

PICTURE = "results.png"
METRICS = "metrics.csv"
_LOSS, _RATE = "loss", "lr"
_SMOOTHED = 50  # points of a loss, more than which are averaged for a line that can be read

Points = tuple[NDArray[np.float64], NDArray[np.float64]]
"""x and y of a curve, [n] each; x in epochs, 1 at the end of the first."""


@dataclass(frozen=True, slots=True)
class Curves:
    """What was logged in a run.

    Attributes:
        losses: of training, by name.
        rates: the learning rates, by name.
        scores: of validation, from 0 to 1, by name.
    """

    losses: dict[str, Points]
    rates: dict[str, Points]
    scores: dict[str, Points]

    def __bool__(self) -> bool:
        """Whether there is a curve."""
        return bool(self.losses or self.rates or self.scores)


def read_curves(path: Path) -> Curves:
    """Reads ``metrics.csv``.

    Rows and values that are no numbers are left out, so that a file that is being written, or that
    a spreadsheet has saved, can be read.

    Raises:
        InputError: the file cannot be read, or is no text.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "is no table of metrics"
        raise InputError(f"{path}: {reason}") from error
    rows = [row for row in rows if None not in map(_number, (row.get("step"), row.get("epoch")))]
    names = [name for name in (rows[0] if rows else {}) if name]
    x = _in_epochs(rows)
    curves = Curves({}, {}, {})
    for name in names:
        kind, _, rest = name.partition("/")
        if kind == "train" and rest.endswith(_LOSS):
            group = curves.losses
        elif kind == "train" and rest.startswith(_RATE):
            group = curves.rates
        elif kind == "val" and (rest.endswith(("mAP", "_50")) or f"{name}_50" in names):
            group = curves.scores
        else:
            continue
        pairs = [(x[i], y) for i, row in enumerate(rows) if (y := _number(row[name])) is not None]
        if group is curves.scores:  # torchmetrics writes -1 for what has no ground truth
            pairs = [(at, y) for at, y in pairs if y >= 0]
        if pairs:
            group[rest] = (np.array([at for at, _ in pairs]), np.array([y for _, y in pairs]))
    return curves


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _in_epochs(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The place of each row, in epochs.

    ``step`` counts all steps, and epochs may have different numbers of them, as with another batch
    size after a resume. The last epoch counts as long as the one before if it has fewer steps.
    """
    last: dict[int, float] = {}
    for row in rows:
        epoch, step = int(float(row["epoch"])), float(row["step"])
        last[epoch] = max(last.get(epoch, -1.0), step)
    places, begin, length = {}, 0.0, 0.0
    for epoch in sorted(last):
        taken = last[epoch] + 1 - begin
        unfinished = epoch == max(last) and taken < length
        length = length if unfinished else max(taken, 1.0)
        places[epoch] = (begin, length)
        begin = last[epoch] + 1
    found = []
    for row in rows:
        epoch = int(float(row["epoch"]))
        begin, length = places[epoch]
        found.append(epoch + (float(row["step"]) + 1 - begin) / length)
    return found


def draw(runs: Mapping[str, Curves]) -> NDArray[np.uint8]:
    """A picture [H, W, 3] with a panel for losses, one for learning rates and one for AP.

    Args:
        runs: the curves of each run, by the name to show. Of several runs only the sum of the
            losses is drawn, so that one line is one run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 4.8), dpi=100, layout="constrained")
    losses, scores, rates = figure.subplots(1, 3, sharex=True)
    several = len(runs) > 1
    for run, curves in runs.items():
        mark = f"{run}: " if several else ""
        for name, (x, y) in curves.losses.items():
            if several and name != _LOSS:
                continue
            smooth = _smoothed(y)
            (line,) = losses.plot(x, smooth, label=mark + name)
            if smooth is not y:
                losses.plot(x, y, color=line.get_color(), alpha=0.2, linewidth=0.7)
        for name, (x, y) in curves.scores.items():
            scores.plot(x, y, marker=".", label=mark + name)
        for name, (x, y) in curves.rates.items():
            rates.plot(x, y, label=mark + name)
    titles = ("training loss", "AP in validation", "learning rate")
    for panel, title in zip((losses, scores, rates), titles, strict=True):
        panel.set(xlabel="epoch", title=title)
        panel.grid(alpha=0.3)
        if panel.lines:
            legend = panel.legend(fontsize=8)
            for text in legend.get_texts():
                text.set_parse_math(False)  # a run may be called $x$
        else:
            panel.text(0.5, 0.5, "none was logged", ha="center", transform=panel.transAxes)
    losses.set_xlim(left=0)  # of all three
    if scores.lines:
        scores.set_ylim(bottom=0)
    canvas = FigureCanvasAgg(figure)  # no window system, no global state
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _smoothed(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each value's mean with its neighbours where there are many; ``y`` itself where not."""
    if len(y) <= _SMOOTHED:
        return y
    width = len(y) // _SMOOTHED
    sums = np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(len(y))
    first, end = np.maximum(at - width, 0), np.minimum(at + width + 1, len(y))
    return (sums[end] - sums[first]) / (end - first)


class SaveCurves(Callback):
    """Writes ``results.png`` into the run's folder at the end of a fit; a failure is a warning."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if not trainer.is_global_zero or not (folder / METRICS).exists():
            return  # the user has another logger
        try:
            sync(trainer.loggers)
            if curves := read_curves(folder / METRICS):
                visualize.save_png(folder / PICTURE, draw({folder.name: curves}))
        except Exception as error:
            rank_zero_warn(f"{folder / PICTURE} cannot be written ({one_line(error)})")
