"""Boxes against their masks: what disagrees, what else it may mean, and what is fine."""

from __future__ import annotations

import random
from typing import Any

import pytest

from autotimm.coco import boxes
from autotimm.coco.checks import Rules, check_annotation

HEIGHT, WIDTH = 480, 640
KEPT = " (kept; --boxes mask takes the mask's)"
OR_THE_POLYGON = (
    ", or its polygon has its y so "
    "(kept; autotimm preview shows which is wrong; --boxes mask takes the mask's)"
)


def square(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def kinds(
    bbox: Any, mask: tuple[float, float, float, float], **rules: Any
) -> tuple[Any, list[str]]:
    """The box that is taken for a rectangular mask x, y, w, h, and what was odd."""
    odd: list[str] = []
    raw = {"id": 1, "category_id": 1, "iscrowd": 0, "area": 9.0, "bbox": bbox}
    raw["segmentation"] = square(*mask)
    found = check_annotation(raw, HEIGHT, WIDTH, odd.append, Rules(**rules))
    assert found is not None
    return found["bbox"], odd


def conventions(x: float, y: float, w: float, h: float) -> dict[str, list[list[float]]]:
    """What exporters write for a box x, y, w, h, by how we call it."""
    shares = [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]
    return {
        "as x1, y1, x2, y2": [[x, y, x + w, y + h]],
        "with y counted from below": [[x, HEIGHT - y - h, w, h], [x, HEIGHT - y, w, h]],
        "as centre x, centre y, w, h": [[x + w / 2, y + h / 2, w, h]],
        "as y1, x1, y2, x2": [[y, x, y + h, x + w]],
        "at another scale": [[x / 2, y / 2, w / 2, h / 2], [x * 3, y * 2, w * 3, h * 2]],
        "as x, y, w, h in shares of the image": [shares],
        "as centre x, centre y, w, h (YOLO's) in shares of the image": [
            [shares[0] + shares[2] / 2, shares[1] + shares[3] / 2, *shares[2:]]
        ],
        "as x1, y1, x2, y2 in shares of the image": [
            [*shares[:2], shares[0] + shares[2], shares[1] + shares[3]]
        ],
    }


@pytest.mark.parametrize("reading", conventions(1, 1, 1, 1))
@pytest.mark.parametrize("digits", [3, 6])
def test_other_conventions_are_told(reading: str, digits: int) -> None:
    choose = random.Random(reading)
    told = count = 0
    for _ in range(100):
        w, h = choose.randint(20, 200), choose.randint(20, 200)
        mask = choose.randint(0, WIDTH - w), choose.randint(0, HEIGHT - h), w, h
        for bbox in conventions(*mask)[reading]:
            odd = kinds([round(side, digits) for side in bbox], mask)[1]
            kept = [f"{boxes.FAR}, fits {reading}{end}" for end in (KEPT, OR_THE_POLYGON)]
            told += odd in ([kept[0]], [kept[1]])
            # Few mean the same in another convention, and no more than that is missed.
            assert len(odd) <= 1
            count += 1
    assert told > 0.85 * count


@pytest.mark.parametrize(
    "bbox",
    [
        [100, 50, 40, 30],
        [99.6, 49.5, 40.8, 31.0],  # rounded outwards
        [101, 51, 40, 30],  # counted from 1
        [101, 51, 38, 28],
        [80, 20, 300, 400],  # amodal
        [100, 50, 400, 400],
        [0, 0, WIDTH, HEIGHT],
        [101, 51, 300, 100],  # amodal, its mask a little larger than it on one side
    ],
)
def test_boxes_that_are_fine(bbox: list[float]) -> None:
    assert kinds(bbox, (100, 50, 40, 30)) == (bbox, [])


def test_masks_of_a_few_pixels_may_have_boxes_beside_them() -> None:
    assert kinds([100, 50, 1, 1], (101, 51, 1, 1)) == ([100, 50, 1, 1], [])
    assert kinds([100, 50, 1, 1], (110, 51, 1, 1))[1] == [boxes.FAR + KEPT]


def test_masks_take_the_place_of_boxes_where_that_is_asked_for() -> None:
    mask = (100, 50, 40, 30)
    assert kinds([300, 300, 20, 20], mask) == ([300, 300, 20, 20], [boxes.FAR + KEPT])
    taken = [boxes.FAR + " (mask's taken)"]
    assert kinds([300, 300, 20, 20], mask, boxes="mask") == ([100, 50, 40, 30], taken)
    assert kinds([80, 20, 300, 400], mask, boxes="mask") == ([100, 50, 40, 30], [])


def test_a_polygon_that_leaves_the_image_may_have_its_whole_box() -> None:
    bbox = [600.0, 100.0, 200.0, 50.0]
    assert kinds(bbox, (600, 100, 200, 50)) == (bbox, ["polygon leaves the image (mask clipped)"])


def test_numbers_in_quotes_are_those_of_json() -> None:
    read = {"7": 7, " -1.5e2 ": -150, ".5": 0.5, "7.": 7, "+7": 7}
    assert {text: boxes.number(text) for text in read} == read
    for other in ("1_000", "\u0661", "1,5", "nan", "inf", "1e999", "", "0x1F", True, None):
        assert boxes.number(other) is None
