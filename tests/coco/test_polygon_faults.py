"""Polygons that are wrong beside boxes that are right are named; the boxes are not blamed."""

from __future__ import annotations

import random
from typing import Any

import pytest

from autotimm.coco import boxes, masks
from autotimm.coco.checks import Rules, check_annotation
from autotimm.coco.polygon_faults import of_axes

HEIGHT, WIDTH = 480, 640
SURE = f"{boxes.FAR}, as its polygon has y before x (kept; write a polygon as x1, y1, x2, y2, ...)"
READ = "polygon is a list of x and a list of y (read, as its bbox tells)"
LOOK = "(kept; autotimm preview shows which is wrong; --boxes mask takes the mask's)"


def corners(x: float, y: float, w: float, h: float) -> list[tuple[float, float]]:
    """A polygon of six points in the box."""
    return [(x, y), (x + w / 2, y), (x + w, y), (x + w, y + h), (x + w / 2, y + h), (x, y + h)]


def flat(points: list[tuple[float, float]]) -> list[float]:
    return [side for point in points for side in point]


def kinds(segmentation: Any, bbox: Any, **rules: Any) -> list[str]:
    odd: list[str] = []
    raw = {"id": 1, "category_id": 1, "iscrowd": 0, "area": 9.0, "bbox": bbox}
    raw["segmentation"] = segmentation
    check_annotation(raw, HEIGHT, WIDTH, odd.append, Rules(**rules))
    return [kind for kind in odd if not kind.startswith("polygon leaves the image")]


def turned(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [flat([(b, a) for a, b in corners(x, y, w, h)])]


def test_a_polygon_of_y_before_x_that_leaves_the_image_is_wrong_itself() -> None:
    assert kinds(turned(400, 100, 120, 60), [400, 100, 120, 60]) == [SURE]
    taken = SURE.rpartition(" (")[0] + " (mask's taken)"
    assert kinds(turned(400, 100, 120, 60), [400, 100, 120, 60], boxes="mask") == [taken]
    outside = "mask covers no pixel, as its polygon has y before x (instance left out)"
    assert kinds(turned(500, 100, 120, 60), [500, 100, 120, 60]) == [outside]


def test_a_bbox_of_y_before_x_that_leaves_the_image_is_wrong_itself() -> None:
    odd = kinds([flat(corners(500, 100, 120, 60))], [100, 500, 60, 120])
    assert odd == [f"{boxes.FAR}, fits as y, x, h, w (kept; --boxes mask takes the mask's)"]


def test_inside_of_the_image_either_may_be_wrong() -> None:
    bbox = [300, 50, 120, 60]
    said = [f"{boxes.FAR}, fits as y, x, h, w, or its polygon has y before x {LOOK}"]
    assert kinds(turned(300, 50, 120, 60), bbox) == said
    assert kinds([flat(corners(50, 300, 60, 120))], bbox) == said  # the same numbers
    below = [flat([(x, HEIGHT - y) for x, y in corners(300, 50, 120, 60)])]
    said = [f"{boxes.FAR}, fits with y counted from below, or its polygon has its y so {LOOK}"]
    assert kinds(below, bbox) == said
    # The lower edge in the place of y is an error of boxes alone.
    alone = f"{boxes.FAR}, fits with y counted from below (kept; --boxes mask takes the mask's)"
    assert kinds([flat(corners(300, 50, 120, 60))], [300, HEIGHT - 50, 120, 60]) == [alone]


@pytest.mark.parametrize("count", [3, 4, 5, 6, 7, 8, 12])
def test_a_list_of_x_and_a_list_of_y_are_read_where_the_bbox_tells_so(count: int) -> None:
    choose = random.Random(count)
    for _ in range(50):
        x, y, w, h = (choose.randint(20, 200) for _ in range(4))
        inner = [(choose.uniform(x, x + w), choose.uniform(y, y + h)) for _ in range(count - 2)]
        xs, ys = zip((x, y + h), (x + w, y), *inner, strict=True)
        odd: list[str] = []
        raw = {"id": 1, "category_id": 1, "iscrowd": 0, "area": 9.0, "bbox": [x, y, w, h]}
        one = check_annotation({**raw, "segmentation": [[*xs], [*ys]]}, HEIGHT, WIDTH, odd.append)
        both = [*xs, *ys]
        even, uneven = both[::2], both[1::2]
        as_given = min(even), min(uneven), max(even), max(uneven)
        if count >= 6 and count % 2 == 0 and boxes.is_close((x, y, x + w, y + h), as_given):
            assert odd == []  # numbers that fit either way are COCO's
            continue
        assert odd == [READ] and one is not None
        plain = [flat(list(zip(xs, ys, strict=True)))]
        assert one["segmentation"] == masks.from_polygons(plain, HEIGHT, WIDTH)
        assert one.get("polygons") == plain
    assert kinds([[*xs], [*ys]], None) != [READ] != kinds([[*xs], [*ys]], [0, 0, 5, 5])


def test_two_polygons_are_no_axes() -> None:
    one, other = flat(corners(100, 100, 50, 40)), flat(corners(200, 150, 50, 40))
    assert kinds([one, other], [100, 100, 150, 90]) == []
    assert kinds([one, other], [0, 0, 9, 9]) == [
        f"{boxes.FAR} (kept; --boxes mask takes the mask's)"
    ]
    odd = kinds([one[:5], other[:5]], [100, 100, 150, 90])
    assert odd == ["polygon with fewer than 3 points (instance left out)"]
    for bbox in (None, [1, 2, 3], "1 2 3 4", [1, 2, 3, "x"]):
        assert kinds([one[:5], other[:5]], bbox)[0].startswith("polygon with fewer than 3 points")


def test_axes_may_be_in_quotes() -> None:
    xs, ys = ["10", 30, 30.0, "20", "10"], [8, "8", 28, 40, "28"]
    read = of_axes([xs, ys], [10, 8, 20, 32])
    assert read == [10, 8, 30, 8, 30, 28, 20, 40, 10, 28]
    assert of_axes([["ten", *xs[1:]], ys], [10, 8, 20, 32]) is None
