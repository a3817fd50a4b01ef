"""The mask of an annotation, out of whatever shape its ``segmentation`` has.

Invariants: COCO's own shapes, a list of flat polygons and an RLE, are tried first and cost nothing
more; another shape is read where it can mean one mask only, and that is counted; what is left is a
ValueError whose message is a short reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from autotimm.coco import boxes, masks
from autotimm.coco.jsontext import NotJSONError, parse
from autotimm.coco.outlines import SHAPE, flat, rings_of, without_holes
from autotimm.coco.polygon_faults import of_axes
from autotimm.structures import RLE

_DEEPEST = 4  # lists in lists: GeoJSON's MultiPolygon, of pairs, in a list
_PRINTED = re.compile(r"""b(['"])((?:[0-\[\]-o]|\\\\)+)\1""")
"""What Python prints of the bytes of compressed counts: a backslash is doubled."""
_SEPARATE = re.compile(r"\s*\d+(?:(?:\s*,\s*|\s+)\d+)+\s*", re.ASCII)
"""Numbers with commas or blanks between them, which are no characters of compressed counts."""

_AXES = "polygon is a list of x and a list of y (read, as its bbox tells)"

Odd = Callable[[str], object]
NONE = "no segmentation"
PART_LEFT_OUT = "(part left out)"
"""How the kind of a problem ends where only some parts of a mask could be read."""


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask, and what is known of it already.

    Attributes:
        rle: of the image's size.
        polygons: those that it was made from, flat; empty where it was none.
        extent: about the box of the mask, x1, y1, x2, y2: that of its polygons; None if not known.
    """

    rle: RLE
    polygons: list[list[float]]
    extent: tuple[float, float, float, float] | None


def read(segmentation: Any, height: int, width: int, bbox: Any, odd: Odd) -> Mask:
    """Reads the mask of an annotation.

    Args:
        segmentation: as the COCO file has it.
        height: of the image, in pixels.
        width: of the image, in pixels.
        bbox: as the COCO file has it; decides between two readings of an RLE.
        odd: called with the kind of each problem that was mended.

    Raises:
        ValueError: it cannot be used; the message is a short reason.
    """
    if segmentation is None or segmentation == [] or segmentation == {} or segmentation == "":
        raise ValueError(NONE)
    if isinstance(segmentation, dict) and ("counts" in segmentation or not rings_of(segmentation)):
        return Mask(_read_rle(segmentation, height, width, bbox, odd), [], None)
    if isinstance(segmentation, list):
        polygon = of_axes(segmentation, bbox) if len(segmentation) == 2 else None
        if polygon is not None:
            odd(_AXES)
            segmentation = [polygon]
        polygons, extents, reasons = _checked(segmentation)
        if not reasons:
            return _of_polygons(polygons, extents, height, width, odd)
    elif not isinstance(segmentation, str | dict):
        raise ValueError("segmentation is neither polygons nor RLE")
    parts = _Parts()
    _collect(segmentation, parts)
    return _of_parts(parts, height, width, bbox, odd)


@dataclass(slots=True)
class _Parts:
    """The polygons and RLEs that a segmentation is made of, and what is odd about its shape."""

    polygons: list[Any] = field(default_factory=list)
    rles: list[dict[str, Any]] = field(default_factory=list)
    holed: list[list[list[float]]] = field(default_factory=list)  # each an outline and its holes
    shapes: dict[str, None] = field(default_factory=dict)  # ordered


def _checked(
    polygons: Sequence[Any],
) -> tuple[list[list[float]], list[tuple[float, float, float, float]], list[str]]:
    """Returns the polygons that can be used, their boxes, and why the others cannot."""
    usable: list[list[float]] = []
    extents: list[tuple[float, float, float, float]] = []
    reasons: list[str] = []
    for polygon in polygons:
        try:
            extents.append(masks.check_polygon(polygon))
        except ValueError as error:
            reasons.append(str(error))
        else:
            usable.append(polygon)
    return usable, extents, reasons


def _of_polygons(
    polygons: list[list[float]],
    extents: list[tuple[float, float, float, float]],
    height: int,
    width: int,
    odd: Odd,
) -> Mask:
    x1, y1, x2, y2 = extents[0]
    if len(extents) > 1:
        left, top, right, bottom = zip(*extents, strict=True)
        x1, y1, x2, y2 = min(left), min(top), max(right), max(bottom)
    if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
        odd("polygon leaves the image (mask clipped)")
    return Mask(masks.from_polygons(polygons, height, width), polygons, (x1, y1, x2, y2))


def _of_parts(parts: _Parts, height: int, width: int, bbox: Any, odd: Odd) -> Mask:
    """The union of all parts that can be used."""
    polygons, extents, reasons = _checked(parts.polygons)
    rles: list[RLE] = []
    for part in parts.rles:
        try:
            rles.append(_read_rle(part, height, width, bbox, odd))
        except ValueError as error:
            reasons.append(str(error))
    for outer, *holes in parts.holed:
        rings, _, wrong = _checked([outer, *holes])
        reasons += wrong
        if not wrong:
            rles.append(without_holes(rings[0], rings[1:], height, width))
    if not polygons and not rles:
        raise ValueError(reasons[0] if reasons else NONE)
    for shape in parts.shapes:
        odd(shape)
    if reasons:
        odd(f"{reasons[0]} {PART_LEFT_OUT}")
    if not rles:
        return _of_polygons(polygons, extents, height, width, odd)
    if polygons:
        rles.append(_of_polygons(polygons, extents, height, width, odd).rle)
    return Mask(rles[0] if len(rles) == 1 else masks.union(rles), [], None)


def _collect(value: Any, parts: _Parts, depth: int = 0) -> None:
    """Finds the polygons and RLEs in a segmentation; COCO's own polygons lie at depth 1."""
    if isinstance(value, str) and depth == 0:
        try:
            found = parse(value.encode("utf-8", "surrogatepass"))
        except NotJSONError:
            raise ValueError("segmentation is neither polygons nor RLE") from None
        if not isinstance(found, list | dict):
            raise ValueError("segmentation is neither polygons nor RLE")
        parts.shapes["segmentation is JSON in quotes (read)"] = None
        # Whatever is found there may have COCO's own shape.
        _collect(found, parts, 0)
    elif isinstance(value, dict) and "counts" not in value and (found := rings_of(value)):
        parts.shapes[SHAPE] = None
        for outer, *holes in ([[*flat(ring)] for ring in rings] for rings in found if rings):
            if holes:
                parts.holed.append([outer, *holes])
            else:
                parts.polygons.append(outer)
    elif isinstance(value, dict):
        if depth:
            parts.shapes["list of RLEs (their union taken)"] = None
        parts.rles.append(value)
    elif not isinstance(value, list) or depth > _DEEPEST:
        parts.polygons.append(value)
    elif (polygon := _polygon(value, parts)) is not None:
        if depth == 0:
            if isinstance(value[0], int | float | str):  # one of pairs is counted as that
                parts.shapes["polygon without its outer list (read)"] = None
        elif depth > 1:
            parts.shapes["polygon in more lists than one (read)"] = None
        parts.polygons.append(polygon)
    elif depth and not any(isinstance(part, list | dict) for part in value):
        parts.polygons.append(value)  # broken numbers: the check says what is wrong
    else:
        for part in value:
            _collect(part, parts, depth + 1)


def _polygon(value: list[Any], parts: _Parts) -> list[float] | None:
    """Returns the flat polygon that a list of numbers or of points is; None if it is none."""
    if len(value) >= 3 and all(map(_is_point, value)):
        parts.shapes["polygon of pairs x, y (read)"] = None
        value = [v for point in value for v in (point if isinstance(point, list) else _xy(point))]
    if not value or isinstance(value[0], list | dict):
        return None
    numbers = [_number(v) for v in value]
    if any(isinstance(v, str) for v in value) and None not in numbers:
        parts.shapes["polygon of numbers in quotes (read)"] = None
    return None if None in numbers else numbers  # type: ignore[return-value]


def _is_point(value: Any) -> bool:
    if isinstance(value, dict):
        return value.keys() == {"x", "y"}
    return isinstance(value, list) and len(value) == 2 and None not in map(_number, value)


def _xy(point: dict[str, Any]) -> tuple[Any, Any]:
    return point["x"], point["y"]


def _number(value: Any) -> float | None:
    if type(value) is float or (type(value) is int and value.bit_length() < 1024):
        return value  # others are no float
    return float(value) if isinstance(value, str) and boxes.NUMBER.fullmatch(value) else None


def _read_rle(rle: dict[str, Any], height: int, width: int, bbox: Any, odd: Odd) -> RLE:
    """Reads an RLE that may have been written in an odd way."""
    try:
        return masks.to_rle(rle, height, width)
    except ValueError as error:
        kinds: list[str] = []
        size = _size(rle.get("size"), height, width, kinds)
        counts = _counts(rle.get("counts"), kinds)
        if not kinds and size == [height, width]:
            raise error
        if size == [height, width]:
            found = masks.to_rle({"size": size, "counts": counts}, height, width)
        elif size == [width, height]:
            found = _turned(counts, height, width, bbox)
            kinds.append("RLE of size width, height (the reading taken that fits the bbox)")
        else:
            raise error
    for kind in kinds:
        odd(kind)
    return found


def _size(size: Any, height: int, width: int, kinds: list[str]) -> Any:
    if size is None:
        kinds.append("RLE without a size (the image's taken)")
        return [height, width]
    if isinstance(size, list) and any(isinstance(side, str) for side in size):
        sides = [_number(side) for side in size]
        if None not in sides:
            kinds.append("RLE whose size is in quotes (read)")
            return sides
    return size


def _counts(counts: Any, kinds: list[str]) -> Any:
    """Returns counts as COCO has them, where they can mean one thing only."""
    if isinstance(counts, str):
        # Neither quote, nor bracket with a comma behind it, is a character of compressed counts.
        if printed := _PRINTED.fullmatch(counts):
            kinds.append("RLE counts are Python's text of bytes (read)")
            return printed[2].replace("\\\\", "\\")
        if counts.startswith("[") and counts.endswith("]") and "," in counts:
            try:
                found = parse(counts.encode("utf-8", "surrogatepass"))
            except NotJSONError:
                return counts
            kinds.append("RLE counts are a list in quotes (read)")
            return _counts(found, [])
        if _SEPARATE.fullmatch(counts):
            kinds.append("RLE counts are a list in quotes (read)")
            return [int(count) for count in re.findall(r"\d+", counts)]
        return counts
    if isinstance(counts, list) and any(type(count) is not int for count in counts):
        numbers = [_number(count) for count in counts]
        if all(number is not None and float(number).is_integer() for number in numbers):
            kinds.append("RLE counts are floats or text (read)")
            return [int(number) for number in numbers if number is not None]
    return counts


def _turned(counts: Any, height: int, width: int, bbox: Any) -> RLE:
    """Reads an RLE whose size is [width, height]: only its size is swapped, or the whole mask.

    Raises:
        ValueError: the bbox does not tell which.
    """
    reason = "RLE of another size than the image"
    straight = masks.to_rle({"size": [height, width], "counts": counts}, height, width)
    turned = masks.to_rle({"size": [width, height], "counts": counts}, width, height)
    x1, y1, x2, y2 = masks.box(turned)
    try:
        x, y, w, h = (float(side) for side in bbox)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(reason) from None
    given = (x, y, x + w, y + h)
    fits = [boxes.is_close(given, box) for box in (masks.box(straight), (y1, x1, y2, x2))]
    if fits == [True, False]:
        return straight
    if fits == [False, True]:
        return masks.encode(masks.decode(turned).T)
    raise ValueError(reason)
