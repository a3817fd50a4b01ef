"""Official COCO AP: detections -> COCO's results format -> pycocotools' numbers, by hotcoco.

Invariants: what a caller hands in is not changed; ids are the dataset's own.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotimm.evaluation.coco_input import IouType, Results, entries_of, name_of, prepared, sizes_of
from autotimm.evaluation.ground_truth import GroundTruth, of_records
from autotimm.evaluation.hotcoco_run import Run
from autotimm.evaluation.truth_files import Source, of_source
from autotimm.structures import Detections, InputError, Record

if TYPE_CHECKING:
    from autotimm.coco.index import Category

STATS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
"""Names of pycocotools' statistics, in its order; with another limit N of detections ARN for AR100
(``stats_names``)."""

LVIS_STATS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AP_rare", "AP_common", "AP_frequent"),
    *("AR300", "AR_small", "AR_medium", "AR_large"),
)
"""Those of the ``lvis`` package, in its order, where N is 300."""

MAX_DETECTIONS = 100
"""COCO's: so many detections of a class in an image count, the best ones."""
MOST_DETECTIONS = 1_000_000
"""The most that can be asked for."""
LVIS_MAX_DETECTIONS = 300
"""LVIS': so many detections of an image count, of all its classes together."""

ERRORS = {
    "Cls": "wrong class",
    "Loc": "badly placed",
    "Both": "wrong class and badly placed",
    "Dupe": "found twice",
    "Bkg": "nothing there",
    "Miss": "missed",
}
"""The kinds of error of TIDE (Bolya et al., 2020, arXiv:2008.08115), as they are called here."""


def to_results(
    detections: Detections,
    image_id: int | str | float,
    category_ids: Sequence[int | str | float],
    names: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """One image's detections as entries of a COCO results file.

    Args:
        detections: boxes and ``rles`` (where there are masks) in the original image's pixels.
        image_id: the dataset's own.
        category_ids: the dataset's category id of each label.
        names: what to call each label.

    Returns:
        A dict a detection: ``image_id``, ``category_id``, ``bbox`` [x, y, w, h], ``score``,
        ``category_name`` where there are names, and ``segmentation`` where there are masks. orjson
        or json can write it as it is.
    """
    results: list[dict[str, Any]] = []
    rles = detections.get("rles")
    labels, scores = detections["labels"].tolist(), detections["scores"].tolist()
    for i, (x1, y1, x2, y2) in enumerate(detections["boxes"].tolist()):
        result: dict[str, Any] = {
            "image_id": image_id,
            "category_id": category_ids[labels[i]],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": scores[i],
        }
        if names is not None:
            result["category_name"] = names[labels[i]]
        if rles is not None:
            result["segmentation"] = {"size": list(rles[i]["size"]), "counts": rles[i]["counts"]}
        results.append(result)
    return results


def ground_truth(records: Iterable[Record], categories: Iterable[Category]) -> dict[str, Any]:
    """A COCO annotation file's content from checked records (of a COCO folder or of its shards)."""
    return of_records(records, categories).content()


def limits(truth: GroundTruth, max_detections: int | None) -> tuple[int, int, int] | tuple[int]:
    """pycocotools' ``maxDets``: for LVIS' files the one limit of an image.

    Args:
        truth: what is to be found.
        max_detections: how many detections count; None for what the benchmark says.

    Raises:
        InputError: the limit is below 10.
    """
    if max_detections is not None and not 10 <= max_detections <= MOST_DETECTIONS:
        raise InputError(f"max_detections {max_detections} must be 10 to {MOST_DETECTIONS:,}")
    if truth.federated:
        return (max_detections or LVIS_MAX_DETECTIONS,)
    return 1, 10, max_detections or MAX_DETECTIONS


def stats_names(max_dets: Sequence[int]) -> list[str]:
    """Names of the statistics with these limits."""
    of_lvis = len(max_dets) == 1
    default, names = ("AR300", LVIS_STATS) if of_lvis else ("AR100", STATS)
    return [f"AR{max_dets[-1]}" if name == default else name for name in names]


@dataclass(frozen=True, slots=True)
class ClassResult:
    """What was measured of a category; -1 where it has no instance, crowds not counted.

    Attributes:
        id: the category's.
        instances: to be found, without crowds.
        ap: as ``AP`` of ``STATS``, of this category alone. ``ap50`` and ``ap75`` are ``AP50`` and
            ``AP75`` of it.
        ar: average recall with the most detections that count: ``AR100``.
    """

    id: int
    instances: int
    ap: float
    ap50: float
    ap75: float
    ar: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What COCO's evaluation says of one kind of extent, boxes or masks.

    Attributes:
        stats: by the names of ``stats_names``; -1 where nothing could be counted.
        classes: of every category, by id.
        precision: [10, 101, K], at IoU 0.5, 0.55, ... 0.95 and recall 0, 0.01, ... 1; -1 where a
            category has no instance.
        lost: what each kind of ``ERRORS`` costs: by how much AP50 would rise without it. Badly
            placed has IoU 0.1 to 0.5. Empty where it was not asked for.
    """

    stats: dict[str, float]
    classes: list[ClassResult]
    precision: NDArray[np.float64]
    lost: dict[str, float]


def evaluate(
    ground_truth: Source,
    results: Results,
    iou_type: IouType,
    max_detections: int | None = None,
) -> dict[str, float]:
    """The ``stats`` of :func:`compare`."""
    return compare(ground_truth, results, iou_type, max_detections, errors=False).stats


def compare(
    ground_truth: Source | GroundTruth,
    results: Results,
    iou_type: IouType,
    max_detections: int | None = None,
    *,
    errors: bool = True,
) -> Evaluation:
    """Average precision and recall over all images of the ground truth.

    A ground truth that says what was looked for in its images is LVIS', and measured by its rule.

    Args:
        ground_truth: content of a COCO annotation file, or the file.
        results: entries of a COCO results file, or the file. For ``segm`` each needs a
            ``segmentation``; for ``bbox`` a ``bbox``, or a segmentation whose box is then taken.
        iou_type: compare boxes or masks.
        max_detections: how many of an image count, the best ones of each class (of LVIS' files the
            best ones of all classes): N of pycocotools' ``maxDets = [1, 10, N]``. Its
            ``summarize()`` has no AP where N is not 100 (-1); here it is the mean of the precision
            that ``accumulate()`` finds at N. None for 100, of LVIS' files 300.
        errors: whether to measure what each kind of error costs, which takes as long as the rest.

    Raises:
        InputError: a file cannot be read, or does not fit; names it and the first odd entry.
    """
    found = entries_of(results)
    truth = of_source(ground_truth, sizes_of(found))
    both = prepared(truth, found, iou_type, name_of(results))
    return measured(*both, iou_type, limits(truth, max_detections), errors=errors)


def measured(
    truths: dict[str, Any],
    detections: dict[str, Any],
    iou_type: IouType,
    max_dets: Sequence[int] = (1, 10, MAX_DETECTIONS),
    *,
    errors: bool = False,
) -> Evaluation:
    """As :func:`compare`, of two annotation files' contents as ``coco_input.prepared`` has them:
    ids from 1, and every detection with its score and area. ``max_dets`` is of ``limits``."""
    numbered = Run(truths, detections, iou_type, max_dets)
    run = numbered.of
    totals = summed(run, max_dets)
    ids = [*map(numbered.categories.given, run.params.cat_ids)]
    counts = dict.fromkeys(ids, 0)
    for one in truths["annotations"]:
        counts[one["category_id"]] += not one["iscrowd"]
    classes = [
        ClassResult(
            number,
            counts[number],
            ap=mean(totals.precision[..., k]),
            ap50=mean(totals.precision[0, :, k]),
            ap75=mean(totals.precision[5, :, k]),
            ar=mean(totals.recall[:, k]),
        )
        for k, number in enumerate(ids)
    ]
    costs = run.tide_errors(pos_thr=0.5, bg_thr=0.1)["delta_ap"] if errors else {}
    lost = {name: float(costs[short]) for short, name in ERRORS.items() if short in costs}
    return Evaluation(totals.stats, classes, totals.precision, lost)


class Totals(NamedTuple):
    """What all images amount to.

    Attributes:
        stats: as of :class:`Evaluation`, and so is ``precision``.
        recall: [10, K], at each IoU; -1 where a category has no instance.
    """

    stats: dict[str, float]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def summed(run: Any, max_dets: Sequence[int]) -> Totals:
    """Sums up hotcoco's evaluation ``run``, whose images have been matched."""
    run.accumulate()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of limits that are not COCO's
        run.summarize()  # it prints its table
    stats = dict(zip(stats_names(max_dets), map(float, run.stats), strict=True))
    # All areas, the most detections.
    return Totals(stats, run.eval["precision"][..., 0, -1], run.eval["recall"][..., 0, -1])


def mean(values: NDArray[np.float64]) -> float:
    """As COCO takes it: over what could be counted, -1 if that is nothing."""
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else -1.0
