"""Polygons as objects that name their points: outlines, and holes in them.

kwcoco writes ``exterior`` and ``interiors``, GeoJSON (QuPath, GIS) ``coordinates``, VGG's Image
Annotator ``all_points_x`` and ``all_points_y``. None of them is COCO's, and each means one mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from autotimm.coco import masks
from autotimm.structures import RLE

SHAPE = "polygon as an object with names, not COCO's list (read)"


def rings_of(value: dict[str, Any]) -> list[list[Any]]:
    """Returns the polygons of such an object, each as its outline and its holes, lists of points or
    flat lists, unchecked; none where it is no such object."""
    if "exterior" in value:
        return [[value["exterior"], *_listed(value.get("interiors"))]]
    if "all_points_x" in value and "all_points_y" in value:
        xs, ys = _listed(value["all_points_x"]), _listed(value["all_points_y"])
        return [[[list(pair) for pair in zip(xs, ys, strict=True)]]] if len(xs) == len(ys) else []
    if value.get("type") == "Polygon":
        return [_listed(value.get("coordinates"))]
    if value.get("type") == "MultiPolygon":
        return [_listed(one) for one in _listed(value.get("coordinates"))]
    if value.get("type") in ("Feature", "GeometryCollection"):
        inner = [value.get("geometry"), *_listed(value.get("geometries"))]
        return [rings for one in inner if isinstance(one, dict) for rings in rings_of(one)]
    return []


def without_holes(outer: list[float], holes: list[list[float]], height: int, width: int) -> RLE:
    """Rasterises a checked polygon and takes checked ones out of it."""
    mask = masks.decode(masks.from_polygons([outer], height, width))
    mask &= ~masks.decode(masks.from_polygons(holes, height, width)).astype(bool)
    return masks.encode(np.asarray(mask))


def flat(ring: Any) -> Iterator[Any]:
    """Yields the coordinates of points in turn: x, y, x, y, ..."""
    for point in _listed(ring):
        if isinstance(point, list):
            yield from point
        else:
            yield point


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
