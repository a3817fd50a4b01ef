"""Official COCO AP: detections -> COCO's results format -> pycocotools' numbers, by hotcoco.

Invariants: what a caller hands in is not changed; ids are the dataset's own.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from hotcoco import COCO, COCOeval
from numpy.typing import NDArray

from autotimm.evaluation.coco_input import IouType, Source, prepared
from autotimm.structures import Detections, Record

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
"""Names of pycocotools' statistics, in its order."""

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
    images, annotations = [], []
    for record in records:
        image: dict[str, Any] = {
            "id": record["image_id"],
            "file_name": record["file_name"],
            "width": record["width"],
            "height": record["height"],
        }
        if "given_id" in record:
            image["given_id"] = record["given_id"]
        images.append(image)
        annotations += [{**one, "image_id": record["image_id"]} for one in record["annotations"]]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": one.id, "name": one.name, "supercategory": one.supercategory}
            | ({} if one.given_id is None else {"given_id": one.given_id})
            for one in categories
        ],
    }


@dataclass(frozen=True, slots=True)
class ClassResult:
    """What was measured of a category; -1 where it has no instance, crowds not counted.

    Attributes:
        id: the category's.
        instances: to be found, without crowds.
        ap: as ``AP`` of ``STATS``, of this category alone; ``ap50`` and ``ap75`` likewise.
        ar100: as ``AR100``.
    """

    id: int
    instances: int
    ap: float
    ap50: float
    ap75: float
    ar100: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What COCO's evaluation says of one kind of extent, boxes or masks.

    Attributes:
        stats: the twelve ``STATS``; -1 where nothing could be counted.
        classes: of every category, by id.
        precision: [10, 101, K], at IoU 0.5, 0.55, ... 0.95 and recall 0, 0.01, ... 1; -1 where a
            category has no instance.
        lost: what each kind of ``ERRORS`` costs: by how much AP50 would rise without it. Badly
            placed has IoU 0.1 to 0.5.
    """

    stats: dict[str, float]
    classes: list[ClassResult]
    precision: NDArray[np.float64]
    lost: dict[str, float]


@dataclass(frozen=True, slots=True)
class Errors:
    """What goes wrong among the detections of a least score, at IoU 0.5.

    Attributes:
        matrix: [K + 1, K + 1], categories by id and then background: row the truth, column what was
            found. The last column is what was missed, the last row what is not there.
        images: by image id, how many were found rightly, wrongly, and missed.
        label_errors: detections whose score and overlap suggest that the annotation is what is
            wrong: ``image_id``, ``type`` (``wrong_label``, ``missing_annotation``), ``score``,
            ``category_id`` as found, ``annotation_id`` and ``annotated`` (its category id), IoU.
    """

    matrix: NDArray[np.uint64]
    images: dict[int, tuple[int, int, int]]
    label_errors: list[dict[str, Any]]


def evaluate(ground_truth: Source, results: Source, iou_type: IouType) -> dict[str, float]:
    """The ``stats`` of :func:`compare`."""
    return compare(ground_truth, results, iou_type).stats


def compare(ground_truth: Source, results: Source, iou_type: IouType) -> Evaluation:
    """Average precision and recall over all images of the ground truth.

    Args:
        ground_truth: content of a COCO annotation file, or the file.
        results: entries of a COCO results file, or the file. For ``segm`` each needs a
            ``segmentation``; for ``bbox`` a ``bbox``, or a segmentation whose box is then taken.
        iou_type: compare boxes or masks.

    Raises:
        InputError: a file cannot be read, or does not fit; names it and the first odd entry.
    """
    return measured(*prepared(ground_truth, results, iou_type), iou_type)


def measured(truths: dict[str, Any], detections: dict[str, Any], iou_type: IouType) -> Evaluation:
    """As :func:`compare`, of two annotation files' contents as ``coco_input.prepared`` has them:
    ids from 1, and every detection with its score and area."""
    run = _run(truths, detections, iou_type)
    run.accumulate()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its table
        run.summarize()
    # All areas, 100 detections.
    precision, recall = run.eval["precision"][..., 0, 2], run.eval["recall"][..., 0, 2]
    ids = list(run.params.cat_ids)
    counts = dict.fromkeys(ids, 0)
    for one in truths["annotations"]:
        counts[one["category_id"]] += not one["iscrowd"]
    classes = [
        ClassResult(
            number,
            counts[number],
            ap=_mean(precision[..., k]),
            ap50=_mean(precision[0, :, k]),
            ap75=_mean(precision[5, :, k]),
            ar100=_mean(recall[:, k]),
        )
        for k, number in enumerate(ids)
    ]
    stats = {name: float(value) for name, value in zip(STATS, run.stats, strict=True)}
    told = run.tide_errors(pos_thr=0.5, bg_thr=0.1)["delta_ap"]
    lost = {name: float(told[short]) for short, name in ERRORS.items()}
    return Evaluation(stats, classes, precision, lost)


def errors(
    ground_truth: Source, results: Source, iou_type: IouType, least_score: float = 0.5
) -> Errors:
    """Counts what is confused, missed and invented by detections that score ``least_score``.

    Args and errors are those of :func:`compare`.
    """
    return mistakes(*prepared(ground_truth, results, iou_type), iou_type, least_score)


def mistakes(
    truths: dict[str, Any], detections: dict[str, Any], iou_type: IouType, least_score: float
) -> Errors:
    """As :func:`errors`, of what ``coco_input.prepared`` gives."""
    kept = [one for one in detections["annotations"] if one["score"] >= least_score]
    run = _run(truths, {**detections, "annotations": kept}, iou_type)
    told = run.image_diagnostics(iou_thr=0.5, score_thr=least_score)
    images = {
        image: (one["tp"], one["fp"], one["fn"])
        for image, one in sorted(told["img_summary"].items())
    }
    given = {one["id"]: one["given_id"] for one in truths["annotations"]}
    suspects = [
        {
            "image_id": one["image_id"],
            "type": one["type"],
            "score": one["dt_score"],
            "category_id": one["dt_category_id"],
            "annotation_id": given.get(one["gt_id"]),
            "annotated": one["gt_category_id"],
            "iou": one["iou"],
        }
        for one in told["label_errors"]
    ]
    # What lies in a crowd is neither right nor wrong; the matrix would take it for wrong.
    status = told["dt_status"]
    counted = [one for one in kept if status.get(one["id"]) in ("tp", "fp")]
    run = _run(truths, {**detections, "annotations": counted}, iou_type)
    matrix = run.confusion_matrix(iou_thr=0.5, max_det=100)["matrix"]
    return Errors(matrix, images, suspects)


def _run(truths: dict[str, Any], detections: dict[str, Any], iou_type: IouType) -> Any:
    run = COCOeval(COCO(truths), COCO(detections), iou_type)
    run.evaluate()
    return run


def _mean(values: NDArray[np.float64]) -> float:
    """As COCO takes it: over what could be counted, -1 if that is nothing."""
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else -1.0
