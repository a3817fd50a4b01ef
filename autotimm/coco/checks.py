"""What a COCO file says of one instance: an annotation to rely on, or a counted problem.

Invariant: nothing odd passes uncounted. What can be mended without guessing is mended and counted
(a box from its mask); what cannot is left out and counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from autotimm.coco import boxes, masks, polygon_faults, segmentation
from autotimm.coco.flags import as_flag
from autotimm.structures import Annotation

_EXAMPLES = 3
_MAX_SIDE = 2**20
_MAX_PIXELS = 2**28
_ROUNDED = 0.01
_SHARE = 1 + _ROUNDED


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

    def count(self, kind: str, count: int) -> None:
        """Takes over how often a kind was counted elsewhere, without examples."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.examples.setdefault(kind, [])

    def of_kind(self, start: str | tuple[str, ...]) -> Problems:
        """Returns those whose kind begins with this text, or with one of these."""
        found = Problems()
        found.counts = {k: n for k, n in self.counts.items() if k.startswith(start)}
        found.examples = {kind: self.examples[kind] for kind in found.counts}
        return found

    def update(self, other: Problems) -> None:
        """Adds the problems that another part of the work met."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            examples = self.examples.get(kind, []) + other.examples[kind]
            self.examples[kind] = examples[:_EXAMPLES]

    def update_missing(self, other: Problems) -> None:
        """Adds the kinds that are not counted here yet."""
        for kind in other.counts.keys() - self.counts.keys():
            self.counts[kind], self.examples[kind] = other.counts[kind], other.examples[kind]

    def lines(self) -> list[str]:
        """Returns one line a kind: ``kind: count (first, second, third, ...)``."""
        return [
            f"{kind}: {count:,} ({self.named(kind)})"
            if self.examples[kind]  # a manifest keeps none
            else f"{kind}: {count:,}"
            for kind, count in self.counts.items()
        ]

    def named(self, kind: str) -> str:
        """Returns the examples of a kind on one line."""
        more = ["..."] if self.counts[kind] > len(self.examples[kind]) else []
        return ", ".join(self.examples[kind] + more)


INSTANCE_LEFT_OUT = "(instance left out)"
"""How the kind of a problem ends that costs an instance."""


def as_id(value: Any) -> int | None:
    """Returns an id as an integer, however it is written (7, 7.0, "7", "7.0"); else None."""
    if type(value) is int:  # not bool
        number = value
    elif (isinstance(value, float) and value.is_integer()) or (
        isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,19}(\.0*)?\s*", value)
    ):
        number = int(value.partition(".")[0] if isinstance(value, str) else value)
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
    """Returns whether this is text that can be written as UTF-8 (JSON may hold half characters)."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How annotations are taken where users may want it one way or another.

    Attributes:
        boxes: "given" keeps the boxes of the file, "mask" takes those of the masks.
        crowd: "keep" keeps crowds, which are not trained on; "instance" takes them for ordinary
            instances.
    """

    boxes: Literal["given", "mask"] = "given"
    crowd: Literal["keep", "instance"] = "keep"


RULES = Rules()


def is_trained_on(raw: dict[str, Any], rules: Rules) -> bool:
    """Whether an annotation, its ``flags.settled``, is neither a crowd nor to be ignored."""
    crowd = rules.crowd == "keep" and as_flag(raw.get("iscrowd")) == 1
    return not crowd and as_flag(raw.get("ignore")) != 1


def check_annotation(
    raw: dict[str, Any],
    height: int,
    width: int,
    odd: Callable[[str], object],
    rules: Rules = RULES,
) -> Annotation | None:
    """Checks an annotation whose ``id`` and ``category_id`` are integers already.

    Args:
        raw: as the COCO file has it.
        height: of its image, in pixels.
        width: of its image, in pixels.
        odd: called with the kind of each problem.
        rules: what to do with boxes and crowds.

    Returns:
        The annotation, its mask as a compressed RLE; None if it has to be left out.
    """
    bbox = raw.get("bbox")
    try:
        flag = raw.get("iscrowd")
        iscrowd = 0 if type(flag) is int and flag == 0 else _crowd(flag, rules, odd)
        mask = segmentation.read(raw.get("segmentation"), height, width, bbox, odd)
        extent = mask.extent
        if extent is not None and extent[2] <= _SHARE and _are_shares(extent):
            raise ValueError("polygon in shares of the image (0 to 1), not in pixels")
        inside = masks.area(mask.rle)
        if not inside:
            turned = polygon_faults.swapped(extent, bbox)
            why = f", as its {polygon_faults.SWAPPED}" if turned else ""
            raise ValueError(f"mask covers no pixel{why}")
    except ValueError as error:
        odd(f"{error} {INSTANCE_LEFT_OUT}")
        return None
    annotation: Annotation = {
        "id": raw["id"],
        "category_id": raw["category_id"],
        "bbox": _bbox(bbox, mask, height, width, rules, odd),
        "area": _area(raw.get("area"), inside, odd),
        "iscrowd": iscrowd,
        "segmentation": mask.rle,
    }
    if mask.polygons:
        annotation["polygons"] = mask.polygons
    if "ignore" in raw and _is_ignored(raw["ignore"], odd):
        annotation["ignore"] = 1
    return annotation


def _are_shares(extent: tuple[float, float, float, float]) -> bool:
    """Returns whether a polygon's box x1, y1, x2, y2 is in shares of the image, from 0 to 1.

    In pixels it would lie inside the first one, where no object is; whole numbers may be its sides.
    Rounding takes shares a little beyond the image.
    """
    left, top, right, bottom = extent
    if right > _SHARE or bottom > _SHARE or left < -_ROUNDED or top < -_ROUNDED:
        return False
    return not all(float(side).is_integer() for side in extent)


def _crowd(value: Any, rules: Rules, odd: Callable[[str], object]) -> int:
    """Returns 0 or 1, however it is written; ValueError if it is neither."""
    if value is None or value == "":
        odd("iscrowd missing (0 taken)")
        return 0
    crowd = as_flag(value)
    if crowd is None:
        raise ValueError("iscrowd is neither 0 nor 1")
    if crowd and rules.crowd == "instance":
        odd("iscrowd is 1 (taken as an ordinary instance)")
        return 0
    return crowd


def _is_ignored(value: Any, odd: Callable[[str], object]) -> bool:
    ignored = as_flag(value)
    if ignored is None and value is not None:
        odd("ignore is neither 0 nor 1 (0 taken)")
    return ignored == 1


def _bbox(
    value: Any,
    mask: segmentation.Mask,
    height: int,
    width: int,
    rules: Rules,
    odd: Callable[[str], object],
) -> list[float]:
    """Returns x, y, w, h: as given, where that is a box and no rule says otherwise."""
    if value is None:
        odd("bbox missing (mask's taken)")
    elif not (type(value) is list and len(value) == 4 and _are_numbers(value)):
        odd("bbox is not four finite numbers (mask's taken)")
    elif value[2] <= 0 or value[3] <= 0:
        odd("bbox without an area (mask's taken)")
    else:
        # The polygons' own box costs nothing; the mask's may have to be asked for.
        near = mask.extent or mask.box
        if near is None or not boxes.agrees(value, near):
            tight = mask.box or masks.box(mask.rle)
            if not boxes.agrees(value, tight):
                known = mask.extent, height, width
                fault = polygon_faults.disagreement(value, tight, *known, rules.boxes == "mask")
                if fault:
                    odd(fault)
        if rules.boxes == "given":
            return value
    x1, y1, x2, y2 = masks.box(mask.rle)
    return [x1, y1, x2 - x1, y2 - y1]


def _area(value: Any, inside: int, odd: Callable[[str], object]) -> float:
    if value is None:
        odd("area missing (mask's taken)")
    elif not (_is_number(value) and value > 0):
        odd("area is not a positive number (mask's taken)")
    else:
        if value < 1:  # in shares of the image, or in another unit
            odd("area is below one pixel (kept; COCO's small and large objects go by it)")
        return value
    return float(inside)


def _are_numbers(box: list[Any]) -> bool:
    x, y, w, h = box
    if type(x) is type(y) is type(w) is type(h) is float:  # as nearly all are
        return -1e15 < x < 1e15 and -1e15 < y < 1e15 and -1e15 < w < 1e15 and -1e15 < h < 1e15
    return all(map(_is_number, (x, y, w, h)))


def _is_number(value: Any) -> bool:
    return (
        type(value) is float or type(value) is int
    ) and -1e15 < value < 1e15  # neither bool, NaN nor infinite
