"""What a COCO file says of one instance: an annotation to rely on, or a counted problem.

Invariant: nothing odd passes uncounted. What can be mended without guessing is mended and counted
(a box from its mask); what cannot is left out and counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeGuard

from autotimm.coco import masks
from autotimm.structures import RLE, Annotation

_EXAMPLES = 3
_MAX_SIDE = 2**20
_MAX_PIXELS = 2**28


class Problems:
    """What was odd in a dataset: how often each kind, and the first few examples by name."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, kind: str, example: str) -> None:
        """Counts a problem; the example names the image, annotation or file."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES:
            # Names come from outside: no control characters, no pages of text.
            examples.append("".join(c if c.isprintable() else "?" for c in example[:100]))

    def update(self, other: Problems) -> None:
        """Adds the problems that another part of the work met."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            examples = self.examples.get(kind, []) + other.examples[kind]
            self.examples[kind] = examples[:_EXAMPLES]

    def lines(self) -> list[str]:
        """Returns one line a kind: ``kind: count (first, second, third, ...)``."""
        return [f"{kind}: {self.counts[kind]:,} ({self.named(kind)})" for kind in self.counts]

    def named(self, kind: str) -> str:
        """Returns the examples of a kind on one line."""
        more = ["..."] if self.counts[kind] > len(self.examples[kind]) else []
        return ", ".join(self.examples[kind] + more)


def as_id(value: Any) -> int | None:
    """Returns an id as an integer, however it is written (7, 7.0, "7"); None if it is not one."""
    if type(value) is int:  # not bool
        number = value
    elif (isinstance(value, float) and value.is_integer()) or (
        isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,19}\s*", value)
    ):
        number = int(value)
    else:
        return None
    return number if -(2**63) <= number < 2**63 else None


def as_size(width: Any, height: Any) -> tuple[int, int] | None:
    """Returns an image's width and height as integers; None if no image has them.

    The largest that PIL opens have two thirds of 2^28 pixels. Well above, hotcoco, which counts
    pixels in 32 bits, refuses masks, and pycocotools no longer comes to an end on some polygons.
    """
    w, h = as_id(width) or 0, as_id(height) or 0
    return (w, h) if 0 < w <= _MAX_SIDE and 0 < h <= _MAX_SIDE and w * h <= _MAX_PIXELS else None


def is_text(value: Any) -> TypeGuard[str]:
    """Tells whether this is text that can be written as UTF-8 (JSON may hold half characters)."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def check_annotation(
    raw: dict[str, Any], height: int, width: int, odd: Callable[[str], object]
) -> Annotation | None:
    """Checks an annotation whose ``id`` and ``category_id`` are integers already.

    Args:
        raw: as the COCO file has it.
        height: of its image, in pixels.
        width: of its image, in pixels.
        odd: called with the kind of each problem.

    Returns:
        The annotation, its mask as a compressed RLE; None if it has to be left out.
    """
    try:
        iscrowd = _crowd(raw.get("iscrowd"), odd)
        rle, polygons = _mask(raw.get("segmentation"), height, width, odd)
        inside = masks.area(rle)
        if not inside:
            raise ValueError("mask covers no pixel")
    except ValueError as error:
        odd(f"{error} (instance left out)")
        return None
    annotation: Annotation = {
        "id": raw["id"],
        "category_id": raw["category_id"],
        "bbox": _bbox(raw.get("bbox"), rle, odd),
        "area": _area(raw.get("area"), inside, odd),
        "iscrowd": iscrowd,
        "segmentation": rle,
    }
    if polygons:
        annotation["polygons"] = polygons
    return annotation


def _crowd(value: Any, odd: Callable[[str], object]) -> int:
    """Returns 0 or 1, however it is written; ValueError if it is neither."""
    if value is None:
        odd("iscrowd missing (0 taken)")
        return 0
    if value in (0, 1, "0", "1"):  # False and 1.0 too
        return int(value)
    raise ValueError("iscrowd is neither 0 nor 1")


def _mask(
    segmentation: Any, height: int, width: int, odd: Callable[[str], object]
) -> tuple[RLE, list[list[float]]]:
    """Returns a mask and the polygons that it was made from, if it was; ValueError says why not."""
    if segmentation is None or segmentation == [] or segmentation == {}:
        raise ValueError("no segmentation")
    if not isinstance(segmentation, list):
        return masks.to_rle(segmentation, height, width), []
    polygons: list[list[float]] = []
    reasons: list[str] = []
    leaves = False
    for polygon in segmentation:
        try:
            x1, y1, x2, y2 = masks.check_polygon(polygon)
        except ValueError as error:
            reasons.append(str(error))
            continue
        polygons.append(polygon)
        leaves = leaves or x1 < 0 or y1 < 0 or x2 > width or y2 > height
    if not polygons:
        raise ValueError(reasons[0])
    if reasons:
        odd(f"{reasons[0]} (part left out)")
    if leaves:
        odd("polygon leaves the image (mask clipped)")
    return masks.from_polygons(polygons, height, width), polygons


def _bbox(value: Any, rle: RLE, odd: Callable[[str], object]) -> list[float]:
    """Returns x, y, w, h: as given, where that is a box."""
    if value is None:
        odd("bbox missing (mask's taken)")
    elif not (type(value) is list and len(value) == 4 and all(map(_is_number, value))):
        odd("bbox is not four finite numbers (mask's taken)")
    elif value[2] <= 0 or value[3] <= 0:
        odd("bbox without an area (mask's taken)")
    else:
        return value
    x1, y1, x2, y2 = masks.box(rle)
    return [x1, y1, x2 - x1, y2 - y1]


def _area(value: Any, inside: int, odd: Callable[[str], object]) -> float:
    if value is None:
        odd("area missing (mask's taken)")
    elif not (_is_number(value) and value > 0):
        odd("area is not a positive number (mask's taken)")
    else:
        return value
    return float(inside)


def _is_number(value: Any) -> bool:
    return (
        type(value) is float or type(value) is int
    ) and -1e15 < value < 1e15  # neither bool, NaN nor infinite
