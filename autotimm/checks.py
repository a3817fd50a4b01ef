"""What a COCO file says of one instance: an annotation to rely on, or a counted problem.

Invariant: nothing odd passes uncounted. What can be mended without guessing is mended and counted
(a box from its mask); what cannot is left out and counted.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np

from autotimm import masks
from autotimm.rasterize import rasterize
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

    The largest that PIL opens have two thirds of 2^28 pixels. Well above, pycocotools, which counts
    pixels in 32 bits, no longer comes to an end on some polygons.
    """
    w, h = as_id(width) or 0, as_id(height) or 0
    return (w, h) if 0 < w <= _MAX_SIDE and 0 < h <= _MAX_SIDE and w * h <= _MAX_PIXELS else None


def is_text(value: Any) -> TypeGuard[str]:
    """Tells whether this is text that can be written as UTF-8 (JSON may hold half characters)."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def check_annotations(
    entries: Sequence[tuple[dict[str, Any], int, int, str]], problems: Problems
) -> list[Annotation | None]:
    """Checks annotations whose ``id`` and ``category_id`` are integers already.

    Args:
        entries: each as the COCO file has it; height, width (in pixels) and name of its image.
        problems: where what is odd is counted, in the order of the entries.

    Returns:
        The annotations, their masks as compressed RLEs; None for one that has to be left out.
    """
    drafts = [_draft(raw, height, width) for raw, height, width, _ in entries]
    _check_outlines([draft for draft in drafts if draft.polygons])
    outlines = [draft for draft in drafts if draft.polygons]
    made = rasterize([(draft.polygons, draft.height, draft.width) for draft in outlines])
    for draft, (rle, inside) in zip(outlines, made, strict=True):
        draft.rle, draft.inside = rle, inside
    checked: list[Annotation | None] = []
    for draft, (raw, _, _, name) in zip(drafts, entries, strict=True):
        checked.append(_finish(draft, draft.rle, raw) if draft.rle else None)
        for kind in draft.odd:
            problems.add(kind, f"annotation {raw['id']} of {name}")
    return checked


@dataclass(slots=True)
class _Draft:
    """An annotation half checked: what concerns polygons is done for many at once."""

    height: int
    width: int
    iscrowd: int = 0
    polygons: list[Any] = field(default_factory=list)
    rle: RLE | None = None  # still None at the end: it has to be left out
    inside: int = 0  # pixels
    odd: list[str] = field(default_factory=list)


def _draft(raw: dict[str, Any], height: int, width: int) -> _Draft:
    draft = _Draft(height, width)
    crowd = raw.get("iscrowd")
    iscrowd = _crowd(crowd)
    if iscrowd is not None:
        draft.iscrowd = iscrowd
    elif crowd is None:
        draft.odd.append("iscrowd missing (0 taken)")
    else:
        draft.odd.append("iscrowd is neither 0 nor 1 (instance left out)")
        return draft
    segmentation = raw.get("segmentation")
    if segmentation is None or segmentation == [] or segmentation == {}:
        draft.odd.append("no segmentation (instance left out)")
    elif isinstance(segmentation, list):
        draft.polygons = segmentation
    else:
        try:
            draft.rle = masks.to_rle(segmentation, height, width)
            draft.inside = masks.area(draft.rle)
        except ValueError as error:
            draft.odd.append(f"{error} (instance left out)")
    return draft


def _finish(draft: _Draft, rle: RLE, raw: dict[str, Any]) -> Annotation | None:
    if not draft.inside:
        draft.odd.append("mask covers no pixel (instance left out)")
        return None
    annotation: Annotation = {
        "id": raw["id"],
        "category_id": raw["category_id"],
        "bbox": _bbox(raw.get("bbox"), rle, draft.odd.append),
        "area": _area(raw.get("area"), draft.inside, draft.odd.append),
        "iscrowd": draft.iscrowd,
        "segmentation": rle,
    }
    if draft.polygons:
        annotation["polygons"] = draft.polygons
    return annotation


def _check_outlines(drafts: list[_Draft]) -> None:
    """Leaves in the drafts the polygons that can be used, and notes what was wrong with others."""
    parts = [polygon for draft in drafts for polygon in draft.polygons]
    if not parts:
        return
    numbers = [len(draft.polygons) for draft in drafts]
    heights = np.repeat([draft.height for draft in drafts], numbers)
    widths = np.repeat([draft.width for draft in drafts], numbers)
    reasons, leaves = _inspect(parts, heights, widths)
    if not reasons and not leaves:
        return
    first = 0
    for draft, number in zip(drafts, numbers, strict=True):
        places = range(first, first + number)
        first += number
        bad = [reasons[i] for i in places if i in reasons]
        if bad:
            draft.polygons = [parts[i] for i in places if i not in reasons]
            draft.odd.append(f"{bad[0]} ({'part' if draft.polygons else 'instance'} left out)")
        if leaves.intersection(places):
            draft.odd.append("polygon leaves the image (mask clipped)")


def _inspect(
    polygons: list[Any], heights: np.ndarray, widths: np.ndarray
) -> tuple[dict[int, str], set[int]]:
    """Tells which polygons cannot be used, and why; and which others leave their image.

    Nearly all are lists of numbers about as large as an image, which is seen for all together;
    ``masks.check_polygon`` judges the rest.
    """
    flat = array("d")
    ends = [0]
    for polygon in polygons:
        usual = type(polygon) is list and len(polygon) >= 6 and len(polygon) % 2 == 0
        try:
            flat.fromlist(polygon if usual else _UNUSUAL)
        except (TypeError, OverflowError):
            flat.fromlist(_UNUSUAL)
        ends.append(len(flat))
    points = np.frombuffer(flat).reshape(-1, 2)
    first = np.array(ends[:-1]) // 2
    low, high = np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)
    extent = np.maximum(high.max(1), 0) - np.minimum(low.min(1), 0)
    usual = extent * np.diff(ends) < _USUAL  # False for NaN
    reasons = {}
    for i in np.flatnonzero(~usual).tolist():
        try:
            masks.check_polygon(polygons[i])
        except ValueError as error:
            reasons[i] = str(error)
    leaves = (low < 0).any(1) | (high > np.stack([widths, heights], 1)).any(1)
    return reasons, set(np.flatnonzero(leaves).tolist()).difference(reasons)


_UNUSUAL = [math.nan] * 6
_USUAL = 5e5  # pixels, times numbers: well inside of what ``masks.check_polygon`` lets pass


def _crowd(value: Any) -> int | None:
    if value in (0, 1):  # False and 1.0 too
        return int(value)
    return {"0": 0, "1": 1}.get(value) if isinstance(value, str) else None


def _bbox(value: Any, rle: RLE, odd: Callable[[str], None]) -> list[float]:
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


def _area(value: Any, inside: int, odd: Callable[[str], None]) -> float:
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
