"""An evaluation for people and for scripts: what was measured, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from autotimm.coco.index import Category, shown_names
from autotimm.evaluation.coco_eval import ERRORS, STATS, Errors, Evaluation, measured, mistakes
from autotimm.evaluation.coco_input import IouType, Source, content, names_of, prepared

KINDS: dict[IouType, str] = {"bbox": "box", "segm": "mask"}
"""What COCO compares, and what it is called here."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured of some results.

    Attributes:
        categories: of the ground truth, by id.
        evaluations: by what was compared, boxes or masks.
        errors: of the detections that score ``least_score``, by masks where there are any.
        least_score: of these.
        detections: all, as ``coco_input.prepared`` has them: boxes, masks as RLE.
        files: name of each image, by id.
    """

    categories: list[Category]
    evaluations: dict[IouType, Evaluation]
    errors: Errors
    least_score: float
    detections: list[dict[str, Any]]
    files: dict[int, str]

    @property
    def names(self) -> list[str]:
        """What to call each category."""
        return shown_names(self.categories)


def measure(
    ground_truth: Source, results: Source, least_score: float = 0.5, *, boxes_only: bool = False
) -> Report:
    """Measures boxes, and masks where the results have them.

    Args:
        ground_truth: content of a COCO annotation file, or the file.
        results: entries of a COCO results file, or the file.
        least_score: what a detection must score to be counted among the errors.
        boxes_only: leave the masks of the results, or of some of them, out.

    Raises:
        InputError: a file cannot be read, or does not fit.
    """
    truth, found = content(ground_truth), content(results)
    # Of a results file that is none, prepared() tells what is wrong with it.
    entries = found if isinstance(found, list) else []
    # Where nothing was found, the ground truth alone can tell what was to be found.
    told_by = entries or (truth.get("annotations", []) if isinstance(truth, dict) else [])
    with_masks = not boxes_only and any(
        isinstance(one, dict) and one.get("segmentation") for one in told_by
    )
    kinds: list[IouType] = ["bbox", "segm"] if with_masks else ["bbox"]
    names = names_of(ground_truth, results)
    parts = {kind: prepared(truth, found, kind, names) for kind in kinds}
    evaluations = {kind: measured(*both, kind) for kind, both in parts.items()}
    told = mistakes(*parts[kinds[-1]], kinds[-1], least_score)
    categories = [
        Category(one["id"], str(one.get("name", "")))
        for one in sorted(truth["categories"], key=lambda one: one["id"])
    ]
    detections = parts[kinds[-1]][1]["annotations"]
    files = {one["id"]: str(one.get("file_name", "")) for one in truth["images"]}
    return Report(categories, evaluations, told, least_score, detections, files)


def as_json(report: Report, count: int = 12) -> dict[str, Any]:
    """All numbers, for ``metrics.json``: AP by kind, by class, confusions, suspects and so many of
    the worst images."""
    names = report.names
    counts = ("right", "wrong", "missed")
    return {
        **{
            KINDS[kind]: {
                **one.stats,
                "AP50_lost_to": one.lost,
                "classes": [
                    {"name": name, **asdict(of_class)}
                    for name, of_class in zip(names, one.classes, strict=True)
                ],
            }
            for kind, one in report.evaluations.items()
        },
        "confusion": {
            "least_score": report.least_score,
            "iou": 0.5,
            "classes": [*names, "nothing"],
            "matrix": report.errors.matrix.tolist(),
        },
        "label_errors": report.errors.label_errors,
        "worst": [
            {"image_id": one, "file_name": report.files[one]}
            | dict(zip(counts, report.errors.images[one], strict=True))
            for one in worst(report, count)
        ],
    }


def tables(report: Report) -> Group:
    """What to print, in percent: AP class by class, what the errors cost, the twelve numbers."""
    overall = Table(
        "", *(KINDS[kind] for kind in report.evaluations), title="all classes, in %", box=SIMPLE
    )
    for name in STATS:
        overall.add_row(name, *_percents(e.stats[name] for e in report.evaluations.values()))
    columns = [f"{KINDS[kind]} {what}" for kind in report.evaluations for what in ("AP", "AP50")]
    by_class = Table("class", "id", "instances", *columns, title="class by class, in %", box=SIMPLE)
    for k, name in enumerate(report.names):
        ones = [evaluation.classes[k] for evaluation in report.evaluations.values()]
        numbers = [value for one in ones for value in (one.ap, one.ap50)]
        by_class.add_row(
            escape(name), str(ones[0].id), f"{ones[0].instances:,}", *_percents(numbers)
        )
    kinds_of_error = Table(
        "", *(KINDS[kind] for kind in report.evaluations), title="AP50 lost to, in %", box=SIMPLE
    )
    for name in ERRORS.values():
        kinds_of_error.add_row(name, *_percents(e.lost[name] for e in report.evaluations.values()))
    every = (by_class, kinds_of_error, overall)
    for table in every:
        for column in table.columns[1:]:
            column.justify = "right"
        table.columns[0].no_wrap = True
    return Group(*every)


def worst(report: Report, count: int) -> list[int]:
    """Ids of the images with the lowest F1, of those with errors; of equals the most errors."""

    def order(image_id: int) -> tuple[float, int, int]:
        right, wrong, missed = report.errors.images[image_id]
        return 2 * right / (2 * right + wrong + missed), -wrong - missed, image_id

    with_errors = [
        one for one, (_, wrong, missed) in report.errors.images.items() if wrong + missed
    ]
    return sorted(with_errors, key=order)[:count]


def _percents(values: Any) -> Sequence[str]:
    return [f"{100 * value:.1f}" if value >= 0 else "-" for value in values]
