"""What a COCO file says of one instance: an annotation to rely on, or a counted problem.

Invariant: nothing odd passes uncounted. What can be mended without guessing is mended and counted
(a box from its mask); what cannot is left out and counted.
"""

from __future__ import annotations

import re
from typing import Any, TypeGuard

from autotimm import masks
from autotimm.structures import RLE, Annotation

_EXAMPLES = 3


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


def is_text(value: Any) -> TypeGuard[str]:
    """Tells whether this is text that can be written as UTF-8 (JSON may hold half characters)."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def check_annotation(
    raw: dict[str, Any], height: int, width: int, name: str, problems: Problems
) -> Annotation | None:
    """Checks one annotation whose ``id`` and ``category_id`` are integers already.

    Args:
        raw: as the COCO file has it.
        height: of the image, in pixels.
        width: of the image, in pixels.
        name: of the image, for the examples.
        problems: where what is odd is counted.

    Returns:
        The annotation, its mask as a compressed RLE; None if it has to be left out.
    """

    def odd(kind: str) -> None:
        problems.add(kind, f"annotation {raw['id']} of {name}")

    iscrowd = _crowd(raw.get("iscrowd"))
    if iscrowd is None:
        if raw.get("iscrowd") is not None:
            odd("iscrowd is neither 0 nor 1 (instance left out)")
            return None
        odd("iscrowd missing (0 taken)")
        iscrowd = 0
    segmentation = raw.get("segmentation")
    if segmentation is None or segmentation == [] or segmentation == {}:
        odd("no segmentation (instance left out)")
        return None
    polygons = None
    if isinstance(segmentation, list):
        polygons = _polygons(segmentation, height, width, odd)
        if not polygons:
            return None
        rle = masks.from_polygons(polygons, height, width)
    else:
        try:
            rle = masks.to_rle(segmentation, height, width)
        except ValueError as error:
            odd(f"{error} (instance left out)")
            return None
    inside = masks.area(rle)
    if not inside:
        odd("mask covers no pixel (instance left out)")
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


def _crowd(value: Any) -> int | None:
    if value in (0, 1):  # False and 1.0 too
        return int(value)
    return {"0": 0, "1": 1}.get(value) if isinstance(value, str) else None


def _polygons(polygons: list[Any], height: int, width: int, odd: Any) -> list[list[float]]:
    """Returns the parts of an outline that can be used."""
    usable = []
    reasons = []
    leaves = False
    for polygon in polygons:
        try:
            low, high = masks.check_polygon(polygon)
        except ValueError as error:
            reasons.append(str(error))
            continue
        usable.append(polygon)
        if low < 0 or high > min(height, width):
            leaves |= low < 0 or max(polygon[::2]) > width or max(polygon[1::2]) > height
    if reasons:
        odd(f"{reasons[0]} ({'part' if usable else 'instance'} left out)")
    if leaves:
        odd("polygon leaves the image (mask clipped)")
    return usable


def _bbox(value: Any, rle: RLE, odd: Any) -> list[float]:
    """Returns x, y, w, h: as given, where that is a box."""
    if value is None:
        odd("bbox missing (mask's taken)")
    elif not (isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))):
        odd("bbox is not four finite numbers (mask's taken)")
    elif value[2] <= 0 or value[3] <= 0:
        odd("bbox without an area (mask's taken)")
    else:
        return value
    x1, y1, x2, y2 = masks.box(rle)
    return [x1, y1, x2 - x1, y2 - y1]


def _area(value: Any, inside: int, odd: Any) -> float:
    if value is None:
        odd("area missing (mask's taken)")
    elif not (_is_number(value) and value > 0):
        odd("area is not a positive number (mask's taken)")
    else:
        return value
    return float(inside)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -1e15 < value < 1e15  # neither bool, NaN nor infinite
