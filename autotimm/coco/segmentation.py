"""The mask of an annotation, out of whatever shape its ``segmentation`` has.

Invariants: COCO's own shapes, a list of flat polygons and an RLE, are tried first and cost little
more; another shape is read where it can mean one mask only, and that is counted; what is left is a
ValueError whose message is a short reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from autotimm.coco import masks
from autotimm.coco.jsontext import NotJSONError, parse
from autotimm.coco.outlines import SHAPE, flat, rings_of, without_holes
from autotimm.coco.polygon_faults import of_axes
from autotimm.coco.rle_readings import Odd, number, read_rle
from autotimm.structures import RLE

_CLIPPED = "polygon leaves the image (mask clipped)"
_DEEPEST = 4  # lists in lists: GeoJSON's MultiPolygon, of pairs, in a list
_AXES = "polygon is a list of x and a list of y (read, as its bbox tells)"

NONE = "no segmentation"
PART_LEFT_OUT = "(part left out)"
"""How the kind of a problem ends where only some parts of a mask could be read."""


class Mask(NamedTuple):
    """A mask, and what is known of it already.

    Attributes:
        rle: of the image's size.
        polygons: those that it was made from, flat; empty where it was none.
        extent: about the box of the mask, x1, y1, x2, y2: that of its polygons; None if not known.
        box: of the mask itself, likewise; None if not known.
    """

    rle: RLE
    polygons: list[list[float]]
    extent: tuple[float, float, float, float] | None
    box: list[float] | None = None


def read(segmentation: Any, height: int, width: int, bbox: Any, odd: Odd) -> Mask:
    """Reads the mask of an annotation.

    Args:
        segmentation: as the COCO file has it.
        height: of the image, in pixels.
        width: of the image, in pixels.
        bbox: as the COCO file has it; decides between two readings.
        odd: called with the kind of each problem that was mended.

    Raises:
        ValueError: it cannot be used; the message is a short reason.
    """
    if type(segmentation) is list and len(segmentation) == 1:  # as nearly all are
        try:
            extent = masks.check_polygon(segmentation[0])
        except ValueError:
            pass  # read below in another way, or refused
        else:
            x1, y1, x2, y2 = extent
            if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
                odd(_CLIPPED)
            return Mask(masks.from_polygons(segmentation, height, width), segmentation, extent)
    if segmentation is None or segmentation == [] or segmentation == {} or segmentation == "":
        raise ValueError(NONE)
    if isinstance(segmentation, dict) and ("counts" in segmentation or not rings_of(segmentation)):
        rle, box = read_rle(segmentation, height, width, bbox, odd)
        return Mask(rle, [], None, box)
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
        odd(_CLIPPED)
    return Mask(masks.from_polygons(polygons, height, width), polygons, (x1, y1, x2, y2))


def _of_parts(parts: _Parts, height: int, width: int, bbox: Any, odd: Odd) -> Mask:
    """The union of all parts that can be used."""
    polygons, extents, reasons = _checked(parts.polygons)
    rles: list[RLE] = []
    for part in parts.rles:
        try:
            rles.append(read_rle(part, height, width, bbox, odd)[0])
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
    numbers = [number(v) for v in value]
    if any(isinstance(v, str) for v in value) and None not in numbers:
        parts.shapes["polygon of numbers in quotes (read)"] = None
    return None if None in numbers else numbers  # type: ignore[return-value]


def _is_point(value: Any) -> bool:
    if isinstance(value, dict):
        return value.keys() == {"x", "y"}
    return isinstance(value, list) and len(value) == 2 and None not in map(number, value)


def _xy(point: dict[str, Any]) -> tuple[Any, Any]:
    return point["x"], point["y"]
