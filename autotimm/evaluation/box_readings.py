"""What the boxes of results mean, where they are not COCO's x, y, width and height."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from autotimm.coco import boxes
from autotimm.evaluation.ground_truth import GroundTruth

_COMPARED = 1000  # detections, of the highest scores
_PAIRS = 100_000  # of a detection and a truth: images may have thousands of truths of a class
_FITS = f"{boxes.FAR}, fits "


def likely_reading(truth: GroundTruth, detections: Sequence[dict[str, Any]]) -> str | None:
    """Returns the reading by which far more boxes fit a truth of their class than as they are.

    Args:
        truth: what is to be found.
        detections: as ``coco_input.prepared`` has them.

    Returns:
        A line that names it; None if there is no such reading.
    """
    sizes = {one["id"]: (one["height"], one["width"]) for one in truth.images}
    wanted: dict[tuple[int, int], list[list[float]]] = {}
    for one in truth.annotations:
        x, y, w, h = one["bbox"]
        if w > 0 and h > 0 and not one["iscrowd"]:
            key = one["image_id"], one["category_id"]
            wanted.setdefault(key, []).append([x, y, x + w, y + h])
    counts: Counter[str] = Counter()
    compared = pairs = 0
    for one in sorted(detections, key=lambda one: -one["score"])[:_COMPARED]:
        others = wanted.get((one["image_id"], one["category_id"]), [])
        pairs += len(others)
        if pairs > _PAIRS:
            break
        compared += bool(others)
        counts[_reading(one["bbox"], others, *sizes[one["image_id"]])] += 1
    found = [(name, count) for name, count in counts.most_common() if name.startswith(_FITS)]
    if not found or found[0][1] < 2 or found[0][1] <= 2 * counts["as it is"]:
        return None
    name, count = found[0]
    return (
        f"boxes of the results: of {compared:,} compared, {count:,} fit a truth "
        f"{name.removeprefix(_FITS)}, and {counts['as it is']:,} as they are: COCO's boxes are x, "
        "y, width, height in pixels"
    )


def _reading(bbox: list[float], others: list[list[float]], height: int, width: int) -> str:
    if any(boxes.agrees(bbox, other) for other in others):
        return "as it is"
    for other in others:
        name = boxes.fault(bbox, other, height, width)
        if name is not None and name.startswith(_FITS):
            return name
    return ""
