"""What only the whole of an annotation file shows: that all of its objects have something in common
that objects rarely have.

Nothing is wrong with any one of these annotations:

- Their polygons and boxes all lie in the upper left corner of the images. Label Studio and others
  keep percent, several models answer in thousandths, and some tools draw on smaller copies of the
  images. A script that forgets to convert this puts everything into that corner; by chance objects
  are there once in 10,000 files.
- Their masks are all upright rectangles: boxes, written as polygons.

Invariant: the first object that is otherwise ends the search, so that an ordinary file costs next
to nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from autotimm.coco.checks import Problems

_ROUNDED = 1.001  # times the end of a corner, by which rounding may exceed it
_LARGER = 1.5  # times a corner, from which on both sides of an image say something about it
_SURE = math.log(10_000)  # once in so many files all objects would be in the corner by chance
_OF_AN_IMAGE = 2  # objects that count: those of one image may lie together
_ENOUGH = 12  # rectangles that are more than a coincidence

Size = tuple[int, int]


class _Pattern(Protocol):
    """What all objects so far have in common."""

    def fits(self, raw: dict[str, Any], size: Size, image: int) -> bool:
        """Adds an annotation, as a file has it; returns whether it has it, too."""

    def found(self) -> tuple[str, str] | None:
        """The kind of the problem and its example; None if it may be a coincidence."""


class _Corner:
    """A corner of the images.

    Args:
        kind: of the problem.
        parts: where it ends, from the left and from the top; None for the middle of the image.
    """

    def __init__(self, kind: str, parts: int | None) -> None:
        self._kind, self._parts = kind, parts
        self._right = self._bottom = 0.0  # as shares of the corner
        self._unlikely = 0.0
        self._objects: Counter[int] = Counter()

    def fits(self, raw: dict[str, Any], size: Size, image: int) -> bool:
        end = _end(raw)
        if end is None:
            return False
        wide, high = (size[0] / 2, size[1] / 2) if self._parts is None else (self._parts,) * 2
        right, bottom = end[0] / wide, end[1] / high
        if max(right, bottom) > _ROUNDED:
            return False
        self._right, self._bottom = max(self._right, right), max(self._bottom, bottom)
        self._objects[image] += 1
        larger = size[0] >= _LARGER * wide and size[1] >= _LARGER * high
        if larger and self._objects[image] <= _OF_AN_IMAGE:
            self._unlikely += math.log(size[0] / wide * size[1] / high)
        return True

    def found(self) -> tuple[str, str] | None:
        if self._unlikely < _SURE or min(self._right, self._bottom) < 0.5:
            return None
        return self._kind, f"{self._objects.total():,} objects"


class _Rectangles:
    """Upright rectangles in place of outlines."""

    def __init__(self) -> None:
        self._objects = 0

    def fits(self, raw: dict[str, Any], size: Size, image: int) -> bool:
        self._objects += 1
        polygons = raw.get("segmentation")
        if type(polygons) is not list or len(polygons) != 1 or type(polygons[0]) is not list:
            return False
        (polygon,) = polygons
        if len(polygon) not in (8, 10) or str in map(type, polygon):
            return False
        if len(polygon) == 10 and polygon[:2] != polygon[8:]:  # not closed by its first point
            return False
        points = list(zip(polygon[:8:2], polygon[1:8:2], strict=True))
        sides = zip(points, [*points[1:], points[0]], strict=True)  # each upright or level
        return all((x1 == x2) != (y1 == y2) for (x1, y1), (x2, y2) in sides)

    def found(self) -> tuple[str, str] | None:
        if self._objects < _ENOUGH:
            return None
        return _RECTANGLES, f"{self._objects:,} objects"


_RECTANGLES = "masks are all upright rectangles: were they made of boxes? (kept, as masks)"
_QUARTER = (
    "polygons and boxes all lie in the upper left quarter of the images: were they drawn on "
    "smaller copies? (taken as they are)"
)
_PARTS = {100: "percent", 1000: "thousandths"}


class Patterns:
    """Looks for what all objects of a file have in common.

    Args:
        sizes: [images, 2], width and height in pixels.

    Attributes:
        left: what every object so far has; empty for nearly every file after a few objects.
    """

    def __init__(self, sizes: np.ndarray) -> None:
        self._sizes = sizes
        largest = sizes.min(axis=1).max(initial=0)
        self.left: list[_Pattern] = [
            _Corner(_of_parts(parts), parts) for parts in _PARTS if largest >= _LARGER * parts
        ]
        self.left += [_Corner(_QUARTER, None), _Rectangles()]

    def add(self, raw: dict[str, Any], image: int) -> None:
        """Looks at an annotation, as a file has it, of the image at this place in ``sizes``."""
        width, height = self._sizes[image].tolist()
        self.left = [one for one in self.left if one.fits(raw, (width, height), image)]

    def count(self, problems: Problems) -> None:
        """Counts what was found, once all annotations were added; of the corners, one."""
        corner = False
        for one in self.left:
            found = one.found()
            if found is not None and not (corner and isinstance(one, _Corner)):
                corner = corner or isinstance(one, _Corner)
                problems.add(*found)


def count_patterns(
    raws: Sequence[Sequence[dict[str, Any]]], sizes: np.ndarray, problems: Problems
) -> None:
    """Counts what all annotations have in common.

    Args:
        raws: the annotations of each image, as a file has them.
        sizes: [images, 2], width and height in pixels.
        problems: where it is counted.
    """
    patterns = Patterns(sizes)
    for place, ones in enumerate(raws):
        for raw in ones if patterns.left else ():
            patterns.add(raw, place)
    patterns.count(problems)


def _of_parts(parts: int) -> str:
    return (
        f"polygons and boxes all lie within {parts} of the upper left corner: are they in "
        f"{_PARTS[parts]} of the image? (taken as pixels; if so, multiply x by width / {parts} and "
        f"y by height / {parts})"
    )


def _end(raw: dict[str, Any]) -> tuple[float, float] | None:
    """The right and bottom end of an annotation; None where it has no plain polygon and box."""
    box, polygons = raw.get("bbox"), raw.get("segmentation")
    try:
        x, y, w, h = box if box is not None else (0, 0, 0, 0)
        right = max([x + w, *(max(polygon[::2]) for polygon in polygons or ())])
        bottom = max([y + h, *(max(polygon[1::2]) for polygon in polygons or ())])
        return float(right), float(bottom)
    except (TypeError, ValueError, KeyError):  # RLE is in pixels, odd shapes say too little
        return None
