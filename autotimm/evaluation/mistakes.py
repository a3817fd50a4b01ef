"""What goes wrong among detections, class by class and image by image, by hotcoco."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotimm.evaluation.coco_eval import MAX_DETECTIONS, limits
from autotimm.evaluation.coco_input import IouType, Results, entries_of, name_of, prepared, sizes_of
from autotimm.evaluation.ground_truth import GroundTruth
from autotimm.evaluation.hotcoco_run import Run
from autotimm.evaluation.truth_files import Source, of_source


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


def errors(
    ground_truth: Source | GroundTruth,
    results: Results,
    iou_type: IouType,
    least_score: float = 0.5,
    max_detections: int | None = None,
) -> Errors:
    """Counts what is confused, missed and invented by detections that score ``least_score``.

    Args and errors are those of :func:`autotimm.evaluation.coco_eval.compare`.
    """
    found = entries_of(results)
    truth = of_source(ground_truth, sizes_of(found))
    both = prepared(truth, found, iou_type, name_of(results))
    return mistakes(*both, iou_type, least_score, limits(truth, max_detections))


def mistakes(
    truths: dict[str, Any],
    detections: dict[str, Any],
    iou_type: IouType,
    least_score: float,
    max_dets: Sequence[int] = (1, 10, MAX_DETECTIONS),
) -> Errors:
    """As :func:`errors`, of what ``coco_input.prepared`` gives."""
    kept = [one for one in detections["annotations"] if one["score"] >= least_score]
    run = Run(truths, {**detections, "annotations": kept}, iou_type, max_dets)
    diagnosed = run.of.image_diagnostics(iou_thr=0.5, score_thr=least_score)
    images = {
        run.images.given(image): (one["tp"], one["fp"], one["fn"])
        for image, one in sorted(diagnosed["img_summary"].items())
    }
    given = {one["id"]: one["given_id"] for one in truths["annotations"]}
    suspects = [
        {
            "image_id": run.images.given(one["image_id"]),
            "type": one["type"],
            "score": one["dt_score"],
            "category_id": run.categories.given(one["dt_category_id"]),
            "annotation_id": given.get(one["gt_id"]),
            "annotated": _given(run, one["gt_category_id"]),
            "iou": one["iou"],
        }
        for one in diagnosed["label_errors"]
    ]
    # A detection in a crowd is neither right nor wrong; the matrix would count it as wrong.
    status = diagnosed["dt_status"]
    counted = [one for one in kept if status.get(one["id"]) in ("tp", "fp")]
    run = Run(truths, {**detections, "annotations": counted}, iou_type, max_dets)
    matrix = run.of.confusion_matrix(iou_thr=0.5, max_det=max_dets[-1])["matrix"]
    return Errors(matrix, images, suspects)


def _given(run: Run, category: int | None) -> int | None:
    return None if category is None else run.categories.given(category)
