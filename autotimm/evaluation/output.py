"""The files of an evaluation, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from autotimm import visualize
from autotimm.evaluation import galleries, page, report, tables
from autotimm.evaluation.ground_truth import GroundTruth
from autotimm.evaluation.matching import IMAGES
from autotimm.evaluation.report import Report
from autotimm.evaluation.truth import Truth
from autotimm.files.atomic import whole_file

PAGE = "report.html"


def write(
    measured: Report,
    truth: Truth | None,
    out: Path,
    count: int,
    facts: Mapping[str, str],
    before: Sequence[str] = (),
) -> None:
    """Writes metrics.json, report.html and the pictures of an evaluation into a folder, and prints
    its tables.

    Args:
        measured: what to write.
        truth: where the images are; None draws none of them.
        out: the folder; must exist.
        count: how many of the worst images, and of suspect labels, are drawn and listed.
        facts: what was evaluated, by the name of each fact.
        before: names of the files that this evaluation has written already.
    """
    from autotimm.evaluation import charts  # matplotlib writes a cache, and takes a second

    with whole_file(out / "metrics.json") as file:
        file.write(orjson.dumps(report.as_json(measured, count), option=orjson.OPT_INDENT_2))
    charts.save(charts.precision_recall(measured), out / "precision_recall.png")
    charts.save(charts.confusion(measured), out / "confusion.png")
    written = ["metrics.json", "precision_recall.png", "confusion.png"]
    pictures = galleries.galleries(measured, truth, count)
    if pictures.pairs:
        visualize.save_png(out / "worst.png", visualize.grid(pictures.pairs, columns=2))
        written.append("worst.png (only images with mistakes)")
    with whole_file(out / PAGE) as file:
        file.write(page.page(measured, facts, pictures.sections).encode())
    opens = f"open {out / PAGE} in a browser; beside it: {', '.join([*written, *before])}"
    console = Console()
    # Printed last: a closed stdout does not cost the files.
    console.print(tables.tables(measured))
    for line in (*measured.remarks, *pictures.not_drawn, *pictures.remarks, opens):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def write_images(out: Path, truth: GroundTruth) -> None:
    """Says what file and class each id in the results is, as ``predict`` does.

    An ``images.json`` that an earlier prediction left would say something else.
    """
    content = truth.content() | {"annotations": []}
    for kind in ("images", "categories"):
        content[kind] = [_with_given_id(one) for one in content[kind]]
    with whole_file(out / IMAGES) as file:
        file.write(orjson.dumps(content))


def _with_given_id(entry: dict[str, Any]) -> dict[str, Any]:
    """An image or category under the id that results hold: the data set's own."""
    others = {key: value for key, value in entry.items() if key not in ("id", "given_id")}
    return {"id": entry.get("given_id", entry["id"]), **others}
