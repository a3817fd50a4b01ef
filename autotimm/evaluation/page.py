"""``report.html``: an evaluation as one page that needs no server, no network and no script.

Invariants: every word that comes from data is escaped and without secrets; the page loads nothing,
its pictures are in it, and these have a limit of bytes. The same evaluation and facts give the same
page.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from autotimm.evaluation.coco_eval import ERRORS, Evaluation
from autotimm.evaluation.coco_input import IouType
from autotimm.evaluation.confusions import confusions
from autotimm.evaluation.page_curves import curves_figure
from autotimm.evaluation.report import KINDS, Report
from autotimm.evaluation.tables import ANY_SCORE, percent, sure
from autotimm.redaction import redacted

MOST_BYTES = 20 * 2**20
"""How many bytes of pictures a page holds; a browser on a phone opens such a page."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True)
class Shown:
    """An image in a page: two pictures side by side.

    Attributes:
        caption: what to say of both.
        titles: of the left and of the right one.
        pictures: content of a JPEG file each.
    """

    caption: str
    titles: tuple[str, str]
    pictures: tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Gallery:
    """A section of pictures.

    Attributes:
        title: of the section.
        note: what the pictures show, and how many are not among them.
        shown: the pictures.
    """

    title: str
    note: str
    shown: list[Shown] = field(default_factory=list)


def page(report: Report, facts: Mapping[str, str], galleries: Sequence[Gallery]) -> str:
    """The page of an evaluation.

    Args:
        report: what was measured.
        facts: what was evaluated, by the name of each fact.
        galleries: sections of pictures; those beyond ``MOST_BYTES`` are left out.
    """
    sections = {
        "Tables": _tables(report),
        "Precision and recall": _curves(report),
        "Confusions": _confusions(report),
        **_pictures(galleries),
    }
    links = "\n".join(f'<a href="#s{k}">{text(title)}</a>' for k, title in enumerate(sections))
    body = "\n".join(
        f'<section id="s{k}"><h2>{text(title)}</h2>\n{content}\n</section>'
        for k, (title, content) in enumerate(sections.items())
    )
    style = resources.files("autotimm.evaluation").joinpath("page.css").read_text()
    listed = "".join(
        f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts.items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>Evaluation</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<h1>Evaluation</h1>
<dl>{listed}</dl>
{_headline(report)}
{_remarks(report.remarks)}
<nav>
{links}
</nav>
{body}
</body>
</html>
"""


def text(value: Any) -> str:
    """A word as HTML, for content and attributes: escaped, without secrets and control characters,
    which no HTML may have."""
    return html.escape(_CONTROL.sub("\ufffd", redacted(str(value))))


def _masks_first(report: Report) -> list[tuple[IouType, Evaluation]]:
    """What was measured, of masks first: where there are masks, they are what a user looks for."""
    return sorted(report.evaluations.items(), key=lambda one: one[0] != "segm")


def _headline(report: Report) -> str:
    numbers = [
        (f"{KINDS[kind]} {name}", percent(one.stats[name]))
        for kind, one in _masks_first(report)
        for name in ("AP", "AP50")
    ]
    instances = sum(one.instances for one in next(iter(report.evaluations.values())).classes)
    numbers += [("images", f"{len(report.files):,}"), ("objects to find", f"{instances:,}")]
    items = "".join(f"<li><b>{value}</b>{text(name)}</li>" for name, value in numbers)
    return f'<ul class="figures">{items}</ul>\n<p class="note">AP in percent.</p>'


def _remarks(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    return f'<ul class="remarks">{items}</ul>' if items else ""


def _tables(report: Report) -> str:
    kinds = [KINDS[kind] for kind, _ in _masks_first(report)]
    every = [one for _, one in _masks_first(report)]
    columns = [f"{kind} {what}" for kind in kinds for what in ("AP", "AP50")]
    classes = []
    for k, name in enumerate(report.names):
        ones = [evaluation.classes[k] for evaluation in every]
        numbers = [percent(value) for one in ones for value in (one.ap, one.ap50)]
        classes.append([name, f"{ones[0].instances:,}", *numbers])
    overall = [[name, *(percent(one.stats[name]) for one in every)] for name in every[0].stats]
    lost = [[name, *(percent(one.lost[name]) for one in every)] for name in ERRORS.values()]
    return (
        '<div class="side">'
        + _table(f"All classes, in percent: {ANY_SCORE}", ["", *kinds], overall)
        + _table(f"AP50 lost to each kind of error, in percent: {ANY_SCORE}", ["", *kinds], lost)
        + "</div>"
        + _table(
            f"Class by class, in percent: {ANY_SCORE}", ["class", "objects", *columns], classes
        )
    )


def _table(caption: str, heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{text(one)}</th>' for one in heads)
    body = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>'
        + "".join(f"<td>{text(one)}</td>" for one in row[1:])
        + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{text(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


def _curves(report: Report) -> str:
    figures = [
        curves_figure(KINDS[kind], one, report.names, text) for kind, one in _masks_first(report)
    ]
    return f'<div class="side">{"".join(figures)}</div>'


def _confusions(report: Report) -> str:
    names, counts, shares, left_out = confusions(report.errors.matrix, report.names)
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in ("truth \\ found", *names))
    rows = []
    for name, row, parts in zip(names, counts, shares, strict=True):
        # Never so dark that the number cannot be read.
        cells = (
            f'<td style="--share: {0.6 * part:.3f}">{count:.0f}</td>'
            for count, part in zip(row, parts, strict=True)
        )
        rows.append(f'<tr><th scope="row">{text(name)}</th>{"".join(cells)}</tr>\n')
    kind = KINDS[list(report.evaluations)[-1]]
    more = f" {left_out:,} classes with fewer confusions are left out." if left_out else ""
    return (
        f'<p class="note">A row a class of the truth, a column what was found in its place, by '
        f"{kind} IoU 0.5, of {sure(report)}.{more}</p>"
        f'<div class="scroll"><table class="confusion"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _pictures(galleries: Sequence[Gallery]) -> dict[str, str]:
    left = MOST_BYTES
    sections = {}
    for gallery in galleries:
        parts = [f'<p class="note">{text(gallery.note)}</p>'] if gallery.note else []
        for number, one in enumerate(gallery.shown):
            figure = _pair(one)
            if len(figure) > left:
                parts.append(
                    f'<p class="note">{len(gallery.shown) - number:,} more are not shown: the page '
                    f"holds {MOST_BYTES // 2**20} MB of pictures.</p>"
                )
                break
            left -= len(figure)
            parts.append(figure)
        sections[gallery.title] = "\n".join(parts)
    return sections


def _pair(one: Shown) -> str:
    pictures = "".join(
        f'<figure><img src="data:image/jpeg;base64,{base64.b64encode(content).decode()}" '
        f'alt="{text(title)}: {text(one.caption)}" loading="lazy">'
        f"<figcaption>{text(title)}</figcaption></figure>"
        for title, content in zip(one.titles, one.pictures, strict=True)
    )
    return (
        f'<figure class="pair"><figcaption>{text(one.caption)}</figcaption>'
        f"<div>{pictures}</div></figure>"
    )
