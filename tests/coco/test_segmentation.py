"""Masks in shapes that are not COCO's: read where they can mean one thing, and counted."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as pycoco

from autotimm.coco import masks, segmentation
from autotimm.coco.checks import check_annotation
from autotimm.coco.outlines import SHAPE as NAMED

HEIGHT, WIDTH = 48, 64
POLYGON = [10.0, 8.0, 30.0, 8.0, 35.0, 28.0, 10.0, 20.0]
OTHER = [40.0, 30.0, 60.0, 30.0, 50.0, 44.0]
PAIRS = [[10.0, 8.0], [30.0, 8.0], [35.0, 28.0], [10.0, 20.0]]
BOX = [10.0, 8.0, 25.0, 20.0]


def dense(*polygons: list[float]) -> np.ndarray:
    """pycocotools' mask of some polygons."""
    return pycoco.decode(pycoco.merge(pycoco.frPyObjects(list(polygons), HEIGHT, WIDTH)))


def nested(depth: int) -> dict[str, Any]:
    """GeoJSON's collections, one in another."""
    value: dict[str, Any] = {"type": "Polygon", "coordinates": [PAIRS]}
    for _ in range(depth):
        value = {"type": "GeometryCollection", "geometries": [value]}
    return value


def _pairs(polygon: list[float]) -> list[list[float]]:
    return [list(pair) for pair in zip(polygon[::2], polygon[1::2], strict=True)]


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = pycoco.encode(np.asfortranarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def runs(flat: np.ndarray) -> list[int]:
    """The run lengths of a mask that is laid out in a row already, zeros first."""
    edges = np.flatnonzero(np.diff(flat.astype(int), prepend=0))
    return np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()


def read(segmentation: Any, bbox: Any = BOX) -> tuple[np.ndarray | None, list[str], Any]:
    """The mask that is read, the kinds of what was odd, and the polygons that are kept."""
    raw = {"id": 1, "category_id": 1, "iscrowd": 0, "area": 9.0, "bbox": bbox}
    kinds: list[str] = []
    found = check_annotation(raw | {"segmentation": segmentation}, HEIGHT, WIDTH, kinds.append)
    if found is None:
        return None, kinds, None
    return masks.decode(found["segmentation"]), kinds, found.get("polygons")


ONE = dense(POLYGON)
BOTH = dense(POLYGON, OTHER)
COUNTS = runs(ONE.ravel(order="F"))
READ = {
    "flat": (POLYGON, ONE, "polygon without its outer list (read)"),
    "of text": ([[str(v) for v in POLYGON]], ONE, "polygon of numbers in quotes (read)"),
    "pairs": ([PAIRS], ONE, "polygon of pairs x, y (read)"),
    "pairs alone": (PAIRS, ONE, "polygon of pairs x, y (read)"),
    "points": ([[{"x": x, "y": y} for x, y in PAIRS]], ONE, "polygon of pairs x, y (read)"),
    "too deep": ([[POLYGON], [OTHER]], BOTH, "polygon in more lists than one (read)"),
    "JSON": (json.dumps([POLYGON, OTHER]), BOTH, "segmentation is JSON in quotes (read)"),
    "one RLE": ([compressed(ONE)], ONE, "list of RLEs (their union taken)"),
    "RLEs": ([compressed(ONE), compressed(dense(OTHER))], BOTH, "list of RLEs (their union taken)"),
    "both": ([compressed(ONE), OTHER], BOTH, "list of RLEs (their union taken)"),
    "float counts": (
        {"size": [HEIGHT, WIDTH], "counts": [float(n) for n in COUNTS]},
        ONE,
        "RLE counts are floats or text (read)",
    ),
    "counts of text": (
        {"size": [HEIGHT, WIDTH], "counts": [str(n) for n in COUNTS]},
        ONE,
        "RLE counts are floats or text (read)",
    ),
    "list in quotes": (
        {"size": [HEIGHT, WIDTH], "counts": str(COUNTS)},
        ONE,
        "RLE counts are a list in quotes (read)",
    ),
    "bytes": (
        {"size": [HEIGHT, WIDTH], "counts": str(pycoco.encode(np.asfortranarray(ONE))["counts"])},
        ONE,
        "RLE counts are Python's text of bytes (read)",
    ),
    "numbers in quotes": (
        {"size": [HEIGHT, WIDTH], "counts": " ".join(map(str, COUNTS))},
        ONE,
        "RLE counts are a list in quotes (read)",
    ),
    "numbers and commas": (
        {"size": [HEIGHT, WIDTH], "counts": ", ".join(map(str, COUNTS))},
        ONE,
        "RLE counts are a list in quotes (read)",
    ),
    "kwcoco": ([{"exterior": PAIRS, "interiors": []}], ONE, NAMED),
    "GeoJSON": ({"type": "Polygon", "coordinates": [PAIRS]}, ONE, NAMED),
    "several": ({"type": "MultiPolygon", "coordinates": [[PAIRS], [_pairs(OTHER)]]}, BOTH, NAMED),
    "a feature": (
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [PAIRS]}},
        ONE,
        NAMED,
    ),
    "with heights": (
        {"type": "Polygon", "coordinates": [[[*pair, 7.5] for pair in PAIRS]]},
        ONE,
        NAMED,
    ),
    "VIA": (
        {"name": "polygon", "all_points_x": POLYGON[::2], "all_points_y": POLYGON[1::2]},
        ONE,
        NAMED,
    ),
    "no size": (
        {"counts": compressed(ONE)["counts"]},
        ONE,
        "RLE without a size (the image's taken)",
    ),
    "size of text": (
        compressed(ONE) | {"size": ["48", "64"]},
        ONE,
        "RLE whose size is in quotes (read)",
    ),
    "size swapped": (
        {"size": [WIDTH, HEIGHT], "counts": COUNTS},
        ONE,
        "RLE of size width, height (the reading taken that fits the bbox)",
    ),
    "mask turned": (
        {"size": [WIDTH, HEIGHT], "counts": runs(ONE.ravel(order="C"))},
        ONE,
        "RLE of size width, height (the reading taken that fits the bbox)",
    ),
}


@pytest.mark.parametrize("outer", [POLYGON, PAIRS])
def test_holes_of_named_polygons_stay_holes(outer: list) -> None:
    hole = [14.0, 12.0, 22.0, 12.0, 22.0, 20.0, 14.0, 20.0]
    expected = ONE & ~dense(hole).astype(bool)
    assert 0 < expected.sum() < ONE.sum()
    for named in (
        {"exterior": outer, "interiors": [_pairs(hole)]},
        {"type": "Polygon", "coordinates": [outer, hole]},
    ):
        mask, kinds, polygons = read(named, BOX)
        assert kinds == [NAMED] and polygons is None
        np.testing.assert_array_equal(mask, expected)
    mask, kinds, _ = read([named, OTHER], [10, 8, 50, 36])
    np.testing.assert_array_equal(mask, expected | dense(OTHER))


@pytest.mark.parametrize(
    "value",
    [
        {"exterior": None},
        {"exterior": PAIRS, "interiors": [[[1, None]]]},
        {"type": "Polygon", "coordinates": []},
        {"type": "Polygon", "coordinates": 7},
        {"type": "Polygon", "coordinates": [[[*pair, 7.5, 1.0] for pair in PAIRS]]},
        {"type": "Polygon", "coordinates": [[[10.0, 8.0, 7.5], *PAIRS[1:], [10.0]]]},
        nested(5000),
        {"type": "LineString", "coordinates": PAIRS},
        {"all_points_x": [1, 2, 3], "all_points_y": [1, 2]},
    ],
)
def test_named_polygons_without_points_are_left_out(value: dict) -> None:
    mask, kinds, _ = read(value, BOX)
    assert mask is None and len(kinds) == 1 and kinds[0].endswith("(instance left out)")


@pytest.mark.parametrize("name", READ)
def test_what_has_one_reading_is_read_and_counted(name: str) -> None:
    segmentation, expected, kind = READ[name]
    mask, kinds, polygons = read(segmentation, BOX if expected is ONE else [10, 8, 50, 36])
    assert kinds == [kind]
    assert mask is not None
    np.testing.assert_array_equal(mask, expected)
    # pycocotools reads what is kept of polygons to the same mask.
    if polygons is not None:
        np.testing.assert_array_equal(dense(*polygons), expected)


def test_polygons_as_coco_has_them_are_kept_as_they_are() -> None:
    mask, kinds, polygons = read([POLYGON, OTHER], [10, 8, 50, 36])
    assert not kinds
    assert polygons == [POLYGON, OTHER]
    assert mask is not None
    np.testing.assert_array_equal(mask, BOTH)


def test_a_polygon_that_is_closed_is_the_same() -> None:
    mask, kinds, _ = read([[*POLYGON, *POLYGON[:2], *POLYGON[:2]]])
    assert not kinds
    assert mask is not None
    np.testing.assert_array_equal(mask, ONE)


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[10, 8, 25, 20]], "polygon with fewer than 3 points"),  # a box to pycocotools, or a line
        ([10, 8, 25, 20], "polygon with fewer than 3 points"),
        ([[10, 8], [30, 28]], "polygon with fewer than 3 points"),
        ([1, 2, 3, 4, 5, 6, 7], "polygon with an odd number of coordinates"),
        ([[[[[[[[*POLYGON]]]]]]]], "polygon with fewer than 3 points"),
        ([["a", "b", "c", "d", "e", "f"]], "polygon is not a list of numbers"),
        ("no JSON", "segmentation is neither polygons nor RLE"),
        ("5", "segmentation is neither polygons nor RLE"),
        (5, "segmentation is neither polygons nor RLE"),
        ("", "no segmentation"),
        ({"size": [HEIGHT, WIDTH], "counts": [float("nan")]}, "RLE counts are broken"),
        ({"size": [HEIGHT, WIDTH], "counts": [float("inf")]}, "RLE counts are broken"),
        ({"size": [HEIGHT, WIDTH], "counts": [0.5, 3071.5]}, "RLE counts are broken"),
        ({"size": [HEIGHT, WIDTH], "counts": "b'\\xff'"}, "RLE counts are broken"),
        ({"size": [24, 32], "counts": [768]}, "RLE of another size than the image"),
    ],
)
def test_what_has_none_or_several_is_left_out(segmentation: Any, reason: str) -> None:
    mask, kinds, _ = read(segmentation)
    assert mask is None
    assert kinds == [f"{reason} (instance left out)"]


@pytest.mark.parametrize("bbox", [None, [1, 1, 3, 3], "text"])
def test_a_size_that_is_swapped_wants_a_box_that_decides(bbox: Any) -> None:
    mask, kinds, _ = read({"size": [WIDTH, HEIGHT], "counts": COUNTS}, bbox)
    assert mask is None
    assert kinds == ["RLE of another size than the image (instance left out)"]


def test_parts_that_cannot_be_used_are_counted_beside_what_is_read() -> None:
    mask, kinds, _ = read([compressed(ONE), {"size": [1, 1], "counts": [1]}])
    assert mask is not None
    np.testing.assert_array_equal(mask, ONE)
    assert kinds == [
        "list of RLEs (their union taken)",
        "RLE of another size than the image (part left out)",
    ]


@pytest.mark.parametrize(
    ("segmentation", "bbox", "reason"),
    [
        ({"size": [HEIGHT, WIDTH], "counts": [1.0, 10**400]}, BOX, "RLE counts are broken"),
        ([[1.5, 10**400, 3.0, 4.0, "5", 6.0]], BOX, "polygon is not a list of numbers"),
        ({"size": [WIDTH, HEIGHT], "counts": COUNTS}, [10**400, 0, 1, 1], "RLE of another size"),
        ({"size": [HEIGHT, WIDTH], "counts": "b'1', b'2'"}, BOX, "RLE counts are broken"),
        ({"size": [HEIGHT, WIDTH], "counts": r"b'\d'"}, BOX, "RLE counts are broken"),
        ({"size": [HEIGHT, WIDTH], "counts": "\ud800"}, BOX, "RLE counts are broken"),
    ],
)
def test_numbers_that_no_float_holds_and_odd_texts(
    segmentation: Any, bbox: Any, reason: str
) -> None:
    mask, kinds, _ = read(segmentation, bbox)
    assert mask is None
    assert kinds[0].startswith(reason) and kinds[0].endswith("(instance left out)")


@pytest.mark.parametrize("height, width", [(48, 64), (40, 40)])
def test_counts_that_run_row_by_row_are_read_where_the_bbox_tells_so(
    height: int, width: int
) -> None:
    """As NumPy's ravel gives them; COCO's run column by column."""
    drawn = np.zeros((height, width), np.uint8)
    drawn[6:12, 20:38] = 1
    drawn[12:20, 20:26] = 1
    flat = np.concatenate(([0], drawn.ravel(), [255]))
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    rle = {
        "size": [height, width],
        "counts": np.diff(np.concatenate(([0], edges))).tolist(),
    }
    odd: list[str] = []
    found = segmentation.read(rle, height, width, [20, 6, 18, 14], odd.append)
    np.testing.assert_array_equal(masks.decode(found.rle), drawn)
    assert odd == ["RLE counts run row by row (read, as the bbox tells)"]
    for bbox in (None, [0, 0, width, height], "20 6 18 14", [1, 2, 3, "x"]):
        assert segmentation.read(rle, height, width, bbox, odd.append).rle != found.rle
    packed = pycoco.frPyObjects(rle, height, width)["counts"].decode()
    read = segmentation.read({**rle, "counts": packed}, height, width, [20, 6, 18, 14], odd.append)
    assert read.rle == found.rle and odd.pop() == odd[0]
    plain = masks.to_rle(rle, height, width)
    x1, y1, x2, y2 = masks.box(plain)
    own = segmentation.read(rle, height, width, [x1, y1, x2 - x1, y2 - y1], odd.append)
    assert own.rle == plain and len(odd) == 1
