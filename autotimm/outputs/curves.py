"""``results.png``: how losses, learning rates and AP of one or several runs went, over epochs.

The figures are those of ``metrics.csv``, of a resumed run also those of the runs before it.
matplotlib is imported where a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from autotimm import visualize
from autotimm.outputs.history import METRICS, number, read_history
from autotimm.outputs.loggers import one_line, run_folder, sync

PICTURE = "results.png"
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
        resumed: the place, in epochs, after which an earlier run was resumed, by its folder's name.
        missing: the checkpoint of an earlier run of which there are no metrics; None for none.
    """

    losses: dict[str, Points]
    rates: dict[str, Points]
    scores: dict[str, Points]
    resumed: dict[str, float] = field(default_factory=dict)
    missing: str | None = None

    def __bool__(self) -> bool:
        """Whether there is a curve."""
        return bool(self.losses or self.rates or self.scores)


def read_curves(path: Path, apart: Collection[Path] = ()) -> Curves:
    """Reads ``metrics.csv`` of a run, and of the runs that it was resumed from.

    Rows and values that are no numbers are left out, so that a file that is being written, or that
    a spreadsheet has saved, can be read.

    Args:
        path: of the run's file.
        apart: folders of runs that are drawn beside it: they are not read as a part of it.

    Raises:
        InputError: a file cannot be read, or is no text.
    """
    history = read_history(path, apart)
    rows = history.rows
    names = [name for name in dict.fromkeys(key for row in rows for key in row) if name]
    x = _in_epochs(rows)
    curves = Curves({}, {}, {}, _places(history.resumed, rows, x), history.missing)
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
        found = [(x[i], number(row.get(name))) for i, row in enumerate(rows)]
        # Of two values at one place, such as of a validation before and after a resume, the last.
        pairs = {at: y for at, y in found if y is not None}
        if group is curves.scores:  # torchmetrics writes -1 for what has no ground truth
            pairs = {at: y for at, y in pairs.items() if y >= 0}
        if pairs:
            group[rest] = (np.array([*pairs]), np.array([*pairs.values()]))
    return curves


def _places(
    steps: Mapping[str, float], rows: Sequence[Mapping[str, Any]], x: Sequence[float]
) -> dict[str, float]:
    """The places, in epochs, at which so many steps were taken, by the same names.

    Args:
        steps: numbers of steps.
        rows: what was logged.
        x: the place of each row.
    """
    if not rows:
        return {}
    logged = sorted(zip((float(row["step"]) + 1 for row in rows), x, strict=True))
    taken, places = zip(*logged, strict=True)
    return {name: float(np.interp(count, taken, places)) for name, count in steps.items()}


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

    A thin dotted line shows where a run was resumed.

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
    for place in {place for curves in runs.values() for place in curves.resumed.values()}:
        for panel in (losses, scores, rates):
            _mark_resume(panel, place)
    canvas = FigureCanvasAgg(figure)  # no window system, no global state
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _mark_resume(panel: Any, place: float) -> None:
    """Draws the line where a run was resumed, with the word beside it."""
    panel.axvline(place, color="gray", linewidth=0.8, linestyle=":")
    above = panel.get_xaxis_transform()  # x in epochs, y from 0 to 1
    style = {"rotation": 90, "ha": "right", "va": "top", "fontsize": 7, "color": "gray"}
    panel.text(place, 0.98, "resumed ", transform=above, **style)


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
