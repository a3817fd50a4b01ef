"""The curves of precision over recall to show: of single classes, and the means over all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotimm.evaluation.coco_eval import Evaluation
from autotimm.visualize import Colour, class_colour

RECALL = np.linspace(0, 1, 101)
_MOST_CURVES = 20  # of single classes: nobody can distinguish more
_MEANS = (0, 5, 8)  # IoU 0.5, 0.75 and 0.9


class Curve(NamedTuple):
    """Precision over recall.

    Attributes:
        label: the name of the class, or of the mean, and its AP.
        precision: [101], at recall 0, 0.01, ... 1; NaN where a class has no instance.
        colour: of its class, darker, for white paper; None for a mean over all classes.
    """

    label: str
    precision: NDArray[np.float64]
    colour: Colour | None


def curves(evaluation: Evaluation, names: list[str]) -> list[Curve]:
    """Each class at IoU 0.5 (the 20 with the most instances), and the mean of all at three IoUs.

    Args:
        evaluation: of boxes or masks.
        names: what to call each of its classes.

    Returns:
        Classes before means; none if no class has an instance.
    """
    precision = np.where(evaluation.precision < 0, np.nan, evaluation.precision)
    seen = [k for k, one in enumerate(evaluation.classes) if one.instances]
    if not seen:
        return []
    common = sorted(seen, key=lambda k: -evaluation.classes[k].instances)[:_MOST_CURVES]
    found = []
    for k in sorted(common):
        red, green, blue = (round(0.75 * part) for part in class_colour(k))
        label = f"{names[k]}: {evaluation.classes[k].ap50:.2f}"
        found.append(Curve(label, precision[0, :, k], (red, green, blue)))
    for at in _MEANS:
        mean = precision[at][:, seen].mean(axis=1)
        label = f"all classes, IoU {0.5 + 0.05 * at:.2f}: {mean.mean():.2f}"
        found.append(Curve(label, mean, None))
    return found
