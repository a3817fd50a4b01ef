"""What an evaluation measures, and its numbers as JSON; ``tables.py`` prints them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from autotimm.coco.checks import Problems
from autotimm.coco.index import Category, shown_names
from autotimm.coco.truths import of_evaluation
from autotimm.evaluation.coco_eval import (
    MAX_DETECTIONS,
    ClassResult,
    Evaluation,
    limits,
    measured,
)
from autotimm.evaluation.coco_input import (
    IouType,
    Results,
    entries_of,
    name_of,
    prepared,
    sizes_of,
)
from autotimm.evaluation.ground_truth import GroundTruth
from autotimm.evaluation.matching import refuse_numbered
from autotimm.evaluation.mistakes import Errors, mistakes
from autotimm.evaluation.odd_results import remarks_on
from autotimm.evaluation.truth_files import Source, of_source

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
        max_detections: how many of an image count.
        remarks: what to know of the numbers, a line each.
    """

    categories: list[Category]
    evaluations: dict[IouType, Evaluation]
    errors: Errors
    least_score: float
    detections: list[dict[str, Any]]
    files: dict[int, str]
    max_detections: int = MAX_DETECTIONS
    remarks: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """What to call each category."""
        return shown_names(self.categories)


def measure(
    ground_truth: Source | GroundTruth,
    results: Results,
    least_score: float = 0.5,
    *,
    boxes_only: bool = False,
    max_detections: int | None = None,
    name: str | None = None,
) -> Report:
    """Measures boxes, and masks where the results have them.

    Args:
        ground_truth: content of a COCO annotation file, or the file.
        results: entries of a COCO results file, or the file.
        least_score: what a detection must score to be counted among the errors.
        boxes_only: leave the masks of the results, or of some of them, out.
        max_detections: as of ``coco_eval.compare``.
        name: what messages call the results; by default their file.

    Raises:
        InputError: a file cannot be read, or does not fit.
    """
    entries, name = entries_of(results), name or name_of(results)
    truth = of_source(ground_truth, sizes_of(entries))
    # If nothing was found, only the ground truth shows whether masks were to be found.
    with_masks = not boxes_only and (
        any(isinstance(one, dict) and one.get("segmentation") for one in entries)
        if entries
        else any(one["masked"] for one in truth.annotations)
    )
    kinds: list[IouType] = ["bbox", "segm"] if with_masks else ["bbox"]
    max_dets = limits(truth, max_detections)
    odd = {kind: Problems() for kind in kinds}
    parts = {kind: prepared(truth, entries, kind, name, odd[kind]) for kind in kinds}
    evaluations = {
        kind: measured(*both, kind, max_dets, errors=True) for kind, both in parts.items()
    }
    _refuse_numbered(truth, entries, name, evaluations["bbox"].stats["AP50"])
    errors = mistakes(*parts[kinds[-1]], kinds[-1], least_score, max_dets)
    return Report(
        categories=truth.categories,
        evaluations=evaluations,
        errors=errors,
        least_score=least_score,
        detections=parts[kinds[-1]][1]["annotations"],
        files={one["id"]: one["file_name"] for one in truth.images},
        max_detections=max_dets[-1],
        remarks=[
            *of_evaluation(odd[kinds[-1]]).lines(),
            *remarks_on(truth, parts["bbox"][1]["annotations"], evaluations["bbox"], odd),
            *remarks(truth, evaluations, max_dets[-1], len(entries)),
        ],
    )


def _refuse_numbered(truth: GroundTruth, entries: list[Any], name: str, ap50: float) -> None:
    def measure_again(others: list[Any]) -> float:
        both = prepared(truth, others, "bbox", name)
        return measured(*both, "bbox", limits(truth, None)).stats["AP50"]

    if entries:
        refuse_numbered(entries, name, truth, ap50, measure_again)


def remarks(
    truth: GroundTruth,
    evaluations: Mapping[IouType, Evaluation],
    most: int,
    found: int,
) -> list[str]:
    """What to know of the numbers: what was odd in the truths, and what limits the AP."""
    lines = truth.problems.lines()
    unmasked = sum(not one["masked"] for one in truth.annotations)
    if unmasked:
        why = f" ({truth.maskless})" if truth.maskless else ""
        lines.append(
            f"truths without a mask that covers a pixel: {unmasked:,}{why}; box AP counts them by "
            "their box" + ("; mask AP counts them as missed" if "segm" in evaluations else "")
        )
    ignored = sum(bool(one["ignore"]) for one in truth.annotations)
    if ignored:
        rule = "LVIS' rule leaves them out" if truth.federated else "COCO's rule counts them"
        lines.append(f"truths that the file marks with ignore: {ignored:,}; {rule}")
    if truth.federated:
        lines.append(
            "the images say which categories were looked for: measured by LVIS' rule, with at most "
            f"{most} detections an image"
        )
    key = (lambda one: one["image_id"]) if truth.federated else _image_and_class
    counts = Counter(key(one) for one in truth.annotations if not one["iscrowd"])
    over = [count for count in counts.values() if count > most]
    if over:
        of = "" if truth.federated else " of one class"
        lines.append(
            f"images with more than {most} truths{of}: {len(over):,}, up to {max(over):,}; AP "
            f"counts the best {most} detections{of} in an image: --max-detections {max(over)} "
            "counts more"
        )
    best = max(evaluation.stats["AP50"] for evaluation in evaluations.values())
    if best < 0:
        crowds = f": all {len(truth.annotations):,} truths are crowds" if truth.annotations else ""
        lines.append(f"there is nothing to find{crowds}; AP is -1, as COCO has it")
    if best == 0 and found:
        lines.append(
            "no detection fits any truth (IoU 0.5): are the image ids, the categories and the "
            "pixels those of the ground truth?"
        )
    return lines


def _image_and_class(one: Mapping[str, Any]) -> tuple[int, int]:
    return one["image_id"], one["category_id"]


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
                    {"name": name, **_class_entry(of_class, report.max_detections)}
                    for name, of_class in zip(names, one.classes, strict=True)
                ],
            }
            for kind, one in report.evaluations.items()
        },
        "max_detections": report.max_detections,
        "remarks": report.remarks,
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


def _class_entry(one: ClassResult, most: int) -> dict[str, Any]:
    entry = asdict(one)
    return entry | {f"ar{most}": entry.pop("ar")}


def worst(report: Report, count: int) -> list[int]:
    """Ids of the images with the lowest F1, of those with mistakes; of equals the most mistakes."""

    def order(image_id: int) -> tuple[float, int, int]:
        right, wrong, missed = report.errors.images[image_id]
        return 2 * right / (2 * right + wrong + missed), -wrong - missed, image_id

    with_mistakes = [
        one for one, (_, wrong, missed) in report.errors.images.items() if wrong + missed
    ]
    return sorted(with_mistakes, key=order)[:count]
