"""Precision over recall as SVG inside of a page."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from autotimm.evaluation.coco_eval import Evaluation
from autotimm.evaluation.precision_recall import RECALL, Curve, curves

_LEFT, _TOP, _WIDTH, _HEIGHT = 48, 8, 420, 300  # of the panel, in units of the drawing


def curves_figure(
    kind: str, evaluation: Evaluation, names: list[str], text: Callable[[str], str]
) -> str:
    """A panel with its legend.

    Args:
        kind: what was compared.
        evaluation: of it.
        names: what to call each class.
        text: escapes a word.
    """
    means: list[str] = []
    whole: list[str] = []
    dashed: list[str] = []
    keys = []
    for curve in curves(evaluation, names):
        drawn, look = means, 'class="of-all"'
        if curve.colour is not None:
            drawn = dashed if curve.dash else whole
            look = f'class="of-class" stroke="rgb{curve.colour}"'
        dashes = _dashes(curve)
        drawn.append(f'<polyline {look}{dashes} points="{_points(curve)}"/>')
        look += "" if curve.colour else dashes  # a class is known by its colour
        key = f'<svg class="key" viewBox="0 0 28 12"><polyline {look} points="0,6 28,6"/></svg>'
        keys.append(f"<li>{key}{text(curve.label)}</li>")
    if not keys:
        return f'<p class="note">{text(kind)}: there is nothing to find.</p>'
    bottom = _TOP + _HEIGHT
    grid = "".join(_grid_line(tenth / 10) for tenth in range(0, 11, 2))
    return f"""<figure class="curves"><figcaption>{text(kind)}; classes and their AP at IoU \
0.50</figcaption>
<svg viewBox="0 0 {_LEFT + _WIDTH + 12} {bottom + 34}" role="img" \
aria-label="precision over recall, {text(kind)}">
{grid}<text x="{_LEFT + _WIDTH / 2}" y="{bottom + 30}" text-anchor="middle">recall</text>
<text x="14" y="{_TOP + _HEIGHT / 2}" text-anchor="middle" \
transform="rotate(-90 14 {_TOP + _HEIGHT / 2})">precision</text>
{"".join([*means, *whole, *dashed])}</svg>
<ul>{"".join(keys)}</ul></figure>
"""


def _dashes(curve: Curve) -> str:
    """The attributes of a line's dashes; none for a whole line."""
    if not curve.dash:
        return ""
    lengths = " ".join(f"{length:g}" for length in curve.dash)
    return f' stroke-dasharray="{lengths}" stroke-dashoffset="{0 - curve.offset:g}"'


def _points(curve: Curve) -> str:
    there = ~np.isnan(curve.precision)
    x = _LEFT + _WIDTH * RECALL[there]
    y = _TOP + _HEIGHT * (1 - curve.precision[there])
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _grid_line(share: float) -> str:
    """The lines at a precision and at a recall, with their numbers."""
    x, y = _LEFT + _WIDTH * share, _TOP + _HEIGHT * (1 - share)
    right, bottom = _LEFT + _WIDTH, _TOP + _HEIGHT
    return (
        f'<path class="grid" d="M{_LEFT} {y:g}H{right}M{x:g} {_TOP}V{bottom}"/>'
        f'<text x="{_LEFT - 4}" y="{y + 4:g}" text-anchor="end">{share:g}</text>'
        f'<text x="{x:g}" y="{bottom + 14}" text-anchor="middle">{share:g}</text>'
    )
