"""Polygons as objects that name their points: outlines, and holes in them.

kwcoco writes ``exterior`` and ``interiors``, GeoJSON (QuPath, GIS) ``coordinates``, VGG's Image
Annotator ``all_points_x`` and ``all_points_y``. None of them is COCO's, and each means one mask.
"""

from __future__ import annotations

from typing import Any

from autotimm.coco import masks
from autotimm.structures import RLE

SHAPE = "polygon as an object with names, not COCO's list (read)"
_DEEPEST = 8  # objects in objects: a file may nest them deeper than Python calls functions


def rings_of(value: dict[str, Any], depth: int = 0) -> list[list[Any]]:
    """Returns the polygons of such an object, each as its outline and its holes, lists of points or
    flat lists, unchecked; none where it is no such object.

    Args:
        value: the object.
        depth: how many others hold it.
    """
    if "exterior" in value:
        return [[value["exterior"], *_listed(value.get("interiors"))]]
    if "all_points_x" in value and "all_points_y" in value:
        xs, ys = _listed(value["all_points_x"]), _listed(value["all_points_y"])
        return [[[list(pair) for pair in zip(xs, ys, strict=True)]]] if len(xs) == len(ys) else []
    if value.get("type") == "Polygon":
        return [_listed(value.get("coordinates"))]
    if value.get("type") == "MultiPolygon":
        return [_listed(one) for one in _listed(value.get("coordinates"))]
    if value.get("type") in ("Feature", "GeometryCollection") and depth < _DEEPEST:
        inner = [value.get("geometry"), *_listed(value.get("geometries"))]
        held = [one for one in inner if isinstance(one, dict)]
        return [rings for one in held for rings in rings_of(one, depth + 1)]
    return []


def without_holes(outer: list[float], holes: list[list[float]], height: int, width: int) -> RLE:
    """Rasterises a checked polygon and takes checked ones out of it; sides are in pixels."""
    outline, inside = (masks.from_polygons(some, height, width) for some in ([outer], holes))
    return masks.difference(outline, inside)


def flat(ring: Any) -> list[Any]:
    """Returns the coordinates of points in turn: x, y, x, y, ... GeoJSON's points may have a height
    behind x and y, which is left off. What is no list of points comes back as it is."""
    points = _listed(ring)
    if all(isinstance(point, list) and len(point) in (2, 3) for point in points):
        return [side for point in points for side in point[:2]]
    return points


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
