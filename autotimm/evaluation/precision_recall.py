"""The curves of precision over recall to show: of single classes, and the means over all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotimm.evaluation.coco_eval import Evaluation
from autotimm.visualize import Colour, class_colour

RECALL = np.linspace(0, 1, 101)
_MOST_CURVES = 20  # of single classes: nobody can distinguish more
_MEANS = {0: (), 5: (8.0, 5.0), 8: (2.0, 4.0)}  # dashes at IoU 0.5, 0.75 and 0.9
_TURN = 8.0  # the length that each of several equal curves shows


class Curve(NamedTuple):
    """Precision over recall.

    Attributes:
        label: the name of the class, or of the mean, and its AP.
        precision: [101], at recall 0, 0.01, ... 1; NaN where a class has no instance.
        colour: of its class, darker, for white paper; None for a mean over all classes.
        dash: the lengths of dashes and gaps; () for a whole line.
        offset: the length after which the dashes begin.
    """

    label: str
    precision: NDArray[np.float64]
    colour: Colour | None
    dash: tuple[float, ...] = ()
    offset: float = 0.0


def curves(evaluation: Evaluation, names: list[str]) -> list[Curve]:
    """Each class at IoU 0.5 (the 20 with the most instances), and the mean of all at three IoUs.

    Args:
        evaluation: of boxes or masks.
        names: what to call each of its classes.

    Returns:
        Classes before means; none if no class has an instance. Draw the means first, below the
        classes. Equal curves of classes have dashes that lie beside one another: draw them last,
        and the whole lines below them wider.
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
    found = _taking_turns(found)
    for at, dash in _MEANS.items():
        mean = precision[at][:, seen].mean(axis=1)
        label = f"all classes, IoU {0.5 + 0.05 * at:.2f}: {mean.mean():.2f}"
        found.append(Curve(label, mean, None, dash))
    return found


def _taking_turns(found: list[Curve]) -> list[Curve]:
    """The curves, of which equal ones have dashes, so that none hides another."""
    places: dict[bytes, list[int]] = {}
    for place, curve in enumerate(found):
        places.setdefault(curve.precision.tobytes(), []).append(place)
    turned = list(found)
    for equal in places.values():
        for turn, place in enumerate(equal if len(equal) > 1 else ()):
            dash = (_TURN, _TURN * (len(equal) - 1))
            turned[place] = found[place]._replace(dash=dash, offset=_TURN * turn)
    return turned
