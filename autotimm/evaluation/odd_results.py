"""What is odd about the detections of a results file, though each of them can be measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotimm.coco import boxes
from autotimm.coco.checks import Problems
from autotimm.evaluation.box_readings import likely_reading
from autotimm.evaluation.coco_eval import Evaluation
from autotimm.evaluation.coco_input import IouType
from autotimm.evaluation.ground_truth import GroundTruth
from autotimm.files.units import counted

_FEW = 0.75  # of the images with truths: where fewer have a detection, results may be missing


def remarks_on(
    truth: GroundTruth,
    detections: list[dict[str, Any]],
    evaluation: Evaluation,
    odd: Mapping[IouType, Problems],
) -> list[str]:
    """Says what a reader of the AP should know of the results.

    Args:
        truth: what was to be found.
        detections: of the results, as ``coco_input.prepared`` makes them.
        evaluation: of their boxes.
        odd: what was counted about boxes, and about masks where the results have some.
    """
    lines = [*_of_scores([one["score"] for one in detections]), *_of_counts(truth, detections)]
    said = "segm" in odd and odd["segm"].of_kind(boxes.FAR).counts
    if evaluation.stats["AP50"] < 0.5 and not said:
        reading = likely_reading(truth, detections)
        lines += [reading] if reading else []
    return lines


def _of_scores(scores: list[float]) -> list[str]:
    if scores and (max(scores) > 1 or min(scores) < 0):
        return [
            f"scores range from {min(scores):g} to {max(scores):g}, not from 0 to 1: AP depends on "
            "their order alone, but --min-score compares their values"
        ]
    if len(scores) > 1 and max(scores) == min(scores):
        return [
            f"all scores are {scores[0]:g}: AP then depends on the order of the detections in the "
            "file"
        ]
    return []


def _of_counts(truth: GroundTruth, detections: list[dict[str, Any]]) -> list[str]:
    lines = []
    different = {
        (one["image_id"], one["category_id"], one["score"], *one["bbox"]) for one in detections
    }
    twice = len(detections) - len(different)
    if twice:
        lines.append(
            f"detections of the same box, class and score as another one: {twice:,}; AP counts one "
            "of them as right at most"
        )
    wanted = {one["image_id"] for one in truth.annotations}
    found = wanted & {one["image_id"] for one in detections}
    if detections and len(found) < _FEW * len(wanted):
        lines.append(
            f"only {len(found):,} of {counted(len(wanted), 'image')} with truths have a detection; "
            "AP counts the objects of the others as missed"
        )
    return lines
