"""Annotations, sound and odd: what is kept, what is mended, what is left out and counted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_folder import SQUARE, annotation, image, picture
from coco_read import NAN, read

from autotimm.coco import masks
from autotimm.coco.checks import Problems


def test_a_sound_record(tmp_path: Path) -> None:
    records, problems = read(tmp_path)
    assert not problems
    (only,) = records[0].pop("annotations")
    assert records[0] == {"image_id": 1, "file_name": "a.jpg", "width": 64, "height": 48}
    dense = np.zeros((48, 64), np.uint8)
    dense[8:28, 10:30] = 1
    assert np.array_equal(masks.decode(only.pop("segmentation")), dense)
    assert only == {
        "id": 1,
        "category_id": 3,
        "bbox": [10.0, 8.0, 20.0, 20.0],
        "area": 400.0,
        "iscrowd": 0,
        "polygons": SQUARE,
    }


# What is mended: one annotation is kept, and the one oddity counted.
MENDED = {
    "bbox missing": ({"bbox": ...}, "bbox missing (mask's taken)"),
    "bbox null": ({"bbox": None}, "bbox missing (mask's taken)"),
    **{
        f"bbox of floats, {value} at {side}": (
            {"bbox": [*(2.0,) * side, value, *(2.0,) * (3 - side)]},
            "bbox is not four finite numbers (mask's taken)",
        )
        for side in range(4)
        for value in (NAN, math.inf, 1e15)
    },
    "bbox short": ({"bbox": [1, 2, 3]}, "bbox is not four finite numbers (mask's taken)"),
    "bbox nan": ({"bbox": [1, 2, NAN, 4]}, "bbox is not four finite numbers (mask's taken)"),
    "bbox odd text": (
        {"bbox": ["1", "2", "3", ""]},
        "bbox is not four finite numbers (mask's taken)",
    ),
    "bbox turned": ({"bbox": [[1, 2], [3, 4]]}, "bbox is not four finite numbers (mask's taken)"),
    "bbox of five": ({"bbox": [1, 2, 3, 4, 0.5]}, "bbox is not four finite numbers (mask's taken)"),
    "bbox text": ({"bbox": ["10", "8", "20", "20.0"]}, "bbox of numbers in quotes (read)"),
    "bbox text x": ({"bbox": ["10", 8, 20, 20]}, "bbox of numbers in quotes (read)"),
    "bbox text y": ({"bbox": [10, "8", 20, 20]}, "bbox of numbers in quotes (read)"),
    "bbox text w": ({"bbox": [10, 8, "20", 20]}, "bbox of numbers in quotes (read)"),
    "bbox text h": ({"bbox": [10, 8, 20, "20"]}, "bbox of numbers in quotes (read)"),
    "bbox in two": ({"bbox": [[10, 8, 20, 20]]}, "bbox in more lists than one (read)"),
    "bbox named": (
        {"bbox": {"x": 10, "y": 8, "width": 20, "height": 20}},
        "bbox of named sides (read)",
    ),
    "bbox in short": (
        {"bbox": {"w": 20, "h": 20, "y": 8, "x": "10"}},
        "bbox of named sides (read)",
    ),
    "area text": ({"area": "400.0"}, "area in quotes (read)"),
    "area odd text": ({"area": "nan"}, "area is not a positive number (mask's taken)"),
    "iscrowd empty": ({"iscrowd": ""}, "iscrowd missing (0 taken)"),
    "bbox vast": ({"bbox": [1, 2, 3, 10**400]}, "bbox is not four finite numbers (mask's taken)"),
    "bbox flat": ({"bbox": [1, 2, 0, 4]}, "bbox without an area (mask's taken)"),
    "bbox negative": ({"bbox": [1, 2, 3, -4]}, "bbox without an area (mask's taken)"),
    "area missing": ({"area": ...}, "area missing (mask's taken)"),
    "area nan": ({"area": NAN}, "area is not a positive number (mask's taken)"),
    "area vast": ({"area": 10**30}, "area is not a positive number (mask's taken)"),
    "area zero": ({"area": 0}, "area is not a positive number (mask's taken)"),
    "iscrowd missing": ({"iscrowd": ...}, "iscrowd missing (0 taken)"),
    "id missing": ({"id": ...}, "annotation id missing or not a whole number (numbered anew)"),
    "id text": ({"id": "x"}, "annotation id missing or not a whole number (numbered anew)"),
    "one part odd": (
        {"segmentation": [*SQUARE, [1, 2, 3, 4, 5]]},
        "polygon with fewer than 3 points (part left out)",
    ),
}


@pytest.mark.parametrize("name", MENDED)
def test_mended(tmp_path: Path, name: str) -> None:
    changes, kind = MENDED[name]
    records, problems = read(tmp_path, annotations=[annotation(**changes)])
    assert problems == {kind: 1}
    (only,) = records[0]["annotations"]
    assert only["bbox"] == [10, 8, 20, 20] and only["area"] == 400 and only["iscrowd"] == 0
    assert (
        only["polygons"] == SQUARE and only["id"] == 1 and masks.area(only["segmentation"]) == 400
    )


def test_what_makes_a_truth_doubtful_is_told(tmp_path: Path) -> None:
    """The area decides what COCO's evaluation takes for small; a score is of a model's result."""
    small = "area is below one pixel (kept; COCO's small and large objects go by it)"
    score = "annotation has a score, as results have (kept, as a truth)"
    for changes, kinds in (
        ({"area": 0.13}, {small: 1}),
        ({"area": 1.0}, {}),
        ({"area": 4000.0}, {}),
        ({"score": 0.4}, {score: 1}),
        ({"score": None}, {}),
    ):
        records, problems = read(tmp_path, annotations=[annotation(**changes)])
        assert problems == kinds
        (one,) = records[0]["annotations"]
        assert one["area"] == changes.get("area", 400.0)


# What is left out: no annotation is kept, and the one oddity counted.
LEFT_OUT = {
    "no segmentation (instance left out)": [..., None, [], {}],
    "polygon with fewer than 3 points (instance left out)": [[[]], [[1, 2, 3, 4]]],
    "polygon with an odd number of coordinates (instance left out)": [[[1, 2, 3, 4, 5, 6, 7]]],
    "polygon with a coordinate that is not finite (instance left out)": [[[1, 2, 3, 4, 5, NAN]]],
    "polygon is not a list of numbers (instance left out)": [[["a"] * 6], [[1, 2, 3, None, 5, 6]]],
    "segmentation is neither polygons nor RLE (instance left out)": ["abc", 7],
    "RLE of another size than the image (instance left out)": [
        {"size": [64, 48], "counts": [64 * 48]}
    ],
    "RLE counts do not fill the image (instance left out)": [{"size": [48, 64], "counts": [9, 9]}],
    "RLE without counts (instance left out)": [{"size": [48, 64]}],
    "polygon in shares of the image (0 to 1), not in pixels (instance left out)": [
        [[0.1, 0.2, 0.5, 0.2, 0.5, 0.9]],
        [[0, 0.2, 1.0004, 0.2, 1.0004, 0.9]],
        [[0, 0, 0.98, 0, 0.98, 1, 0, 0.5], [0.25, 0.5, 0.5, 0.5, 0.5, 0.75]],
    ],
    "mask covers no pixel (instance left out)": [
        [[1, 1, 1, 1, 1, 1]],
        {"size": [48, 64], "counts": [48 * 64]},
    ],
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_instances_left_out(tmp_path: Path, kind: str) -> None:
    odd = [annotation(id=n + 2, segmentation=s) for n, s in enumerate(LEFT_OUT[kind])]
    records, problems = read(tmp_path, annotations=[*odd, annotation()])
    assert problems == {kind: len(odd)}
    assert [a["id"] for a in records[0]["annotations"]] == [1]


@pytest.mark.parametrize(
    "corner", [(-10, 8), (10, -8), (54, 8), (10, 38)], ids=["left", "above", "right", "below"]
)
def test_polygons_that_leave_the_image_are_clipped_and_counted(
    tmp_path: Path, corner: tuple[int, int]
) -> None:
    (x, y), within = corner, [20.0, 20, 30, 20, 30, 28]
    outside = [x, y, x + 20, y, x + 20, y + 20, x, y + 20]  # of 64 x 48 pixels
    shapes: list[Any] = [[outside], [outside, within], [[1, 2], outside], [within]]
    edge = [[0, 0, 64, 0, 64, 48, 0, 48]]  # leaves nothing
    around = [min(x, 20), min(y, 20), max(x + 20, 30) - min(x, 20), max(y + 20, 28) - min(y, 20)]
    given = [[x, y, 20, 20], around, [x, y, 20, 20]]
    annotations = [
        annotation(id=n, segmentation=shapes[n], bbox=bbox, area=400 + n)
        for n, bbox in enumerate(given)
    ]
    annotations.append(annotation(id=3, segmentation=shapes[3]))
    annotations.append(annotation(id=4, segmentation=edge, bbox=[0, 0, 64, 48]))
    records, problems = read(tmp_path, annotations=annotations)
    assert problems == {
        "polygon leaves the image (mask clipped)": 3,
        "polygon with fewer than 3 points (part left out)": 1,
    }
    dense = np.zeros((48, 64), np.uint8)
    dense[max(y, 0) : y + 20, max(x, 0) : x + 20] = 1
    first, _, third, _, whole = records[0]["annotations"]
    assert np.array_equal(masks.decode(first["segmentation"]), dense)
    assert third["segmentation"] == first["segmentation"]
    assert third["polygons"] == first["polygons"] == [outside]
    assert masks.area(whole["segmentation"]) == 48 * 64


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "true", " True "])
def test_crowd_however_it_is_written(tmp_path: Path, value: object) -> None:
    rle = {"size": [48, 64], "counts": [100, 50, 48 * 64 - 150]}
    crowd = annotation(iscrowd=value, segmentation=rle, bbox=[2, 0, 2, 48])
    records, problems = read(tmp_path, annotations=[crowd])
    assert records[0]["annotations"][0]["iscrowd"] == 1 and not problems
    assert type(records[0]["annotations"][0]["iscrowd"]) is int


def test_crowd_of_another_value_is_left_out(tmp_path: Path) -> None:
    records, problems = read(tmp_path, annotations=[annotation(iscrowd=2)])
    assert not records[0]["annotations"]
    assert problems == {"iscrowd is neither 0 nor 1 (instance left out)": 1}


def test_ids_as_text_and_floats(tmp_path: Path) -> None:
    records, problems = read(
        tmp_path,
        images=[image(id="5"), image(id=6.0, file_name="b.jpg", width="64", height=48.0)],
        annotations=[
            annotation(id="9", image_id=5, category_id="0"),
            annotation(id=10.0, image_id="6", category_id=12.0),
        ],
        categories=[{"id": "12", "name": "b"}, {"id": 0.0, "name": "a"}],
        files={"a.jpg": picture(), "b.jpg": picture()},
    )
    assert not problems
    assert [r["image_id"] for r in records] == [5, 6]
    assert [(a["id"], a["category_id"]) for r in records for a in r["annotations"]] == [
        (9, 0),
        (10, 12),
    ]
    assert all(type(r["width"]) is int and type(r["height"]) is int for r in records)


def test_ids_that_occur_twice(tmp_path: Path) -> None:
    records, problems = read(
        tmp_path,
        images=[image(), image(file_name="b.jpg")],
        annotations=[annotation(), annotation(category_id=7), annotation(id=41, area=399)],
        files={"a.jpg": picture(), "b.jpg": picture()},
    )
    assert [r["file_name"] for r in records] == ["a.jpg"]
    assert [(a["id"], a["category_id"]) for a in records[0]["annotations"]] == [
        (1, 3),
        (42, 7),
        (41, 3),
    ]
    assert problems == {
        "image id occurs twice (later image left out)": 1,
        "annotation id occurs twice (numbered anew)": 1,
    }


def test_annotations_that_belong_nowhere(tmp_path: Path) -> None:
    _, problems = read(
        tmp_path,
        images=[image(), image(id=2, file_name="gone.jpg")],
        annotations=[
            annotation(image_id=99),
            annotation(id=2, image_id=...),
            annotation(id=3, category_id=99),
            annotation(id=4, image_id=2),
            7,
            annotation(id=5),
        ],
    )
    assert problems == {
        "image file missing (image left out)": 1,
        "annotation of an unknown image (left out)": 2,
        "annotation of an unknown category (left out)": 1,
        "annotation of an image that is left out (left out)": 1,
        "annotation is not an object (left out)": 1,
    }


def test_problems_count_all_and_name_three() -> None:
    first, second = Problems(), Problems()
    for name in ("a", "b\n\x1b[31m"):
        first.add("odd", name)
    for name in ("c" * 500, "d"):
        second.add("odd", name)
    second.add("other", "e")
    first.update(second)
    assert first.lines() == [f"odd: 4 (a, b??[31m, {'c' * 100}, ...)", "other: 1 (e)"]


def test_an_annotation_that_is_there_twice_is_counted(tmp_path: Path) -> None:
    """Exports that were joined have all objects twice; each would be learnt and missed twice."""
    others = [
        annotation(id=2),
        annotation(id=3, category_id=7),
        annotation(id=4, iscrowd=1),
        annotation(id=5, bbox=[10, 8, 20, 21]),
        annotation(id=6, segmentation=[[*SQUARE[0][:-2], 11, 28]]),
        annotation(id=7),
    ]
    records, problems = read(tmp_path, annotations=[annotation(), *others])
    assert len(records[0]["annotations"]) == 7
    assert problems == {"annotation is the same as another of its image (both kept)": 2}


@pytest.mark.parametrize("bbox", [[-5, -5, 80, 70], [10, 8, 2000, 20], [10, 8, 20, 400]])
def test_a_bbox_around_its_mask_that_leaves_the_image_is_told(
    tmp_path: Path, bbox: list[float]
) -> None:
    records, problems = read(tmp_path, annotations=[annotation(bbox=bbox)])
    assert records[0]["annotations"][0]["bbox"] == bbox
    told = "bbox holds its mask and leaves the image (kept; --boxes mask takes the mask's)"
    assert problems == {told: 1}
    assert read(tmp_path, annotations=[annotation(bbox=[0, 0, 65, 49])])[1] == {}  # amodal
