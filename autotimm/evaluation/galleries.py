"""The images of an evaluation to look at: the worst ones, and those whose labels are suspect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import simplejpeg

from autotimm import visualize
from autotimm.evaluation.page import Gallery, Shown
from autotimm.evaluation.report import Report, worst
from autotimm.evaluation.tables import sure
from autotimm.evaluation.truth import Truth
from autotimm.images.decode import DataError

Pair = tuple[visualize.Picture, visualize.Picture]

_WORST, _SUSPECT = "Images with mistakes, the worst first", "Suspect labels"


class Galleries(NamedTuple):
    """Pictures of an evaluation.

    Attributes:
        pairs: predictions and ground truth of each of the worst images.
        sections: of the page.
        not_drawn: a line on each image that cannot be used.
        remarks: a line to print if there is no image to look at.
    """

    pairs: list[Pair]
    sections: list[Gallery]
    not_drawn: list[str]
    remarks: tuple[str, ...] = ()


def galleries(report: Report, truth: Truth | None, count: int) -> Galleries:
    """Draws the worst images, and those of suspect labels.

    Args:
        report: what was measured.
        truth: where the images are; None draws none.
        count: how many of each kind are drawn; 0 leaves both out.
    """
    if not count:
        return Galleries([], [], [])
    if truth is None:
        note = "Annotation files alone have no images: give --images or --data to see them here."
        return Galleries([], [Gallery(_WORST, note), Gallery(_SUSPECT, note)], [])
    # By image, so that one that cannot be used has one line.
    not_drawn: dict[int, str] = {}
    pairs, worst_ones = _worst(report, truth, count, not_drawn)
    suspects = _suspects(report, truth, count, not_drawn)
    remarks = () if worst(report, 1) else (f"{_faultless(report)}, so there is no worst.png",)
    return Galleries(pairs, [worst_ones, suspects], list(not_drawn.values()), remarks)


def _faultless(report: Report) -> str:
    return f"no image has a mistake among {sure(report)}"


def _worst(
    report: Report, truth: Truth, count: int, not_drawn: dict[int, str]
) -> tuple[list[Pair], Gallery]:
    chosen = worst(report, count)
    by_image: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in chosen}
    for one in report.detections:
        if one["image_id"] in by_image and one["score"] >= report.least_score:
            by_image[one["image_id"]].append(one)
    pairs, shown = [], []
    for image_id, found in by_image.items():
        try:
            pair = truth.pair(image_id, found)
        except DataError as error:  # its objects count as missed; still draw the others
            not_drawn[image_id] = f"not drawn: {error}"
            continue
        right, wrong, missed = report.errors.images[image_id]
        caption = f"{report.files[image_id]}: {right} right, {wrong} wrong, {missed} missed"
        pairs.append(pair)
        shown.append(_shown(caption, ("prediction", "ground truth"), pair))
    faultless = len(report.files) - len(worst(report, len(report.files)))
    note = (
        f"Those with the lowest F1, of {sure(report)}; {faultless:,} of {len(report.files):,} "
        "images have no mistake and are not shown. An object that is found twice is dashed the "
        "second time."
        if chosen
        else f"There are none: {_faultless(report)}."
    )
    return pairs, Gallery(_WORST, note, shown)


def _suspects(report: Report, truth: Truth, count: int, not_drawn: dict[int, str]) -> Gallery:
    names = {one.id: name for one, name in zip(report.categories, report.names, strict=True)}
    every = sorted(report.errors.label_errors, key=lambda one: -one["score"])
    shown = []
    for suspect in every[:count]:
        image_id = suspect["image_id"]
        try:
            pair = truth.pair(image_id, [_detection(report, suspect)], suspect["annotation_id"])
        except DataError as error:
            not_drawn[image_id] = f"not drawn: {error}"
            continue
        caption = f"{report.files[image_id]}: {_label_error(suspect, names)}"
        shown.append(_shown(caption, ("found", "annotated"), pair))
    more = f" The {count} with the highest scores of {len(every):,}." if every[count:] else ""
    note = (
        "Annotations that may be wrong, as the model is sure of something else."
        f"{more} metrics.json lists them all as label_errors."
        if every
        else "No detection suggests that an annotation is wrong."
    )
    return Gallery(_SUSPECT, note, shown)


def _label_error(suspect: Mapping[str, Any], names: Mapping[int, str]) -> str:
    """What a suspect label is: what was found there, and what is annotated."""
    found = f"{names[suspect['category_id']]} found with score {suspect['score']:.2f}"
    if suspect["annotation_id"] is None:
        return f"{found}, nothing annotated"
    annotated = names[suspect["annotated"]]
    number = suspect["annotation_id"]
    return f"{found}, annotated as {annotated} (annotation {number}, IoU {suspect['iou']:.2f})"


def _detection(report: Report, suspect: Mapping[str, Any]) -> dict[str, Any]:
    """The detection by which a label is suspect."""
    alike = [
        one
        for one in report.detections
        if (one["image_id"], one["category_id"]) == (suspect["image_id"], suspect["category_id"])
    ]
    return min(alike, key=lambda one: abs(one["score"] - suspect["score"]))


def _shown(caption: str, titles: tuple[str, str], pair: Pair) -> Shown:
    left, right = (
        simplejpeg.encode_jpeg(np.ascontiguousarray(one), quality=85, colorsubsampling="420")
        for one in pair
    )
    return Shown(caption, titles, (left, right))
