"""What only the whole of a file shows: objects in one corner of the images, masks of boxes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_folder import annotation, image, picture
from coco_read import load

from autotimm.coco.checks import Problems
from autotimm.coco.patterns import Patterns, count_patterns
from autotimm.evaluation.truth_files import of_source


def objects(
    count: int, images: int, width: float, height: float, points: int = 5
) -> list[dict[str, Any]]:
    """Shapes all over images whose sides are so long, with a bbox each."""
    generator = random.Random(0)
    made = []
    for n in range(count):
        x1, x2 = sorted(generator.uniform(0, width) for _ in range(2))
        y1, y2 = sorted(generator.uniform(0, height) for _ in range(2))
        made.append(
            annotation(
                id=n + 1,
                image_id=n % images + 1,
                bbox=[x1, y1, x2 - x1, y2 - y1],
                segmentation=[[x1, y1, x2, y1, x2, y2, x1, y2, x1, y1 + 1][: 2 * points]],
            )
        )
    return made


def counted(raws: list[dict[str, Any]], *sizes: tuple[int, int]) -> dict[str, int]:
    problems = Problems()
    of_each = [[raw for raw in raws if raw["image_id"] == n + 1] for n in range(len(sizes))]
    count_patterns(of_each, np.array(sizes), problems)
    return problems.counts


@pytest.mark.parametrize(("parts", "name"), [(100, "percent"), (1000, "thousandths")])
def test_parts_of_the_image_are_told(parts: int, name: str) -> None:
    raws = objects(12, 4, parts, parts)
    (kind,) = counted(raws, *[(4 * parts, 3 * parts)] * 4)
    assert f"in {name} of the image" in kind and "(taken as pixels; " in kind


def test_pixels_are_not() -> None:
    small = [(90, 80)] * 4
    assert counted(objects(40, 4, 90, 80), *small) == {}
    assert counted(objects(40, 4, 130, 120), *[(130, 120)] * 4) == {}  # hardly larger than 100
    assert counted(objects(40, 4, 640, 480), *[(640, 480)] * 4) == {}
    assert counted(objects(3, 1, 99, 99), (640, 480)) == {}  # of one image, in one place
    assert counted(objects(12, 4, 45, 99), *[(640, 480)] * 4) == {}  # far from filling the corner
    one_beyond = [*objects(12, 4, 100, 100), annotation(id=99, bbox=[200.0, 8.0, 20.0, 20.0])]
    assert counted(one_beyond, *[(640, 480)] * 4) == {}
    runs = [raw | {"segmentation": {"size": [480, 640], "counts": "x"}} for raw in one_beyond[:-1]]
    assert counted(runs, *[(640, 480)] * 4) == {}


def test_a_smaller_copy_of_the_image_is_told() -> None:
    sizes = [(640, 480), (200, 300), (90, 80), (1200, 900)]
    raws = []
    for one in objects(12, 4, 0.5, 0.5):
        sides = sizes[one["image_id"] - 1] * 3
        shares = one["segmentation"][0][:6]
        polygon = [share * side for share, side in zip(shares, sides, strict=True)]
        raws.append(one | {"bbox": None, "segmentation": [polygon]})
    (kind,) = counted(raws, *sizes)
    assert "upper left quarter" in kind
    assert counted(raws[:4], *sizes) == {}


def test_masks_that_are_all_boxes_are_told() -> None:
    raws = objects(12, 2, 640, 480, points=4)
    (kind,) = counted(raws, *[(640, 480)] * 2)
    assert kind == "masks are all upright rectangles: were they made of boxes? (kept, as masks)"
    closed = [raw | {"segmentation": [raw["segmentation"][0] * 2]} for raw in raws]
    assert counted(closed, *[(640, 480)] * 2) == {}  # 8 points
    closed = [raw | {"segmentation": [[*(p := raw["segmentation"][0]), *p[:2]]]} for raw in raws]
    assert [*counted(closed, *[(640, 480)] * 2)] == [kind]
    assert counted(raws[:11], *[(640, 480)] * 2) == {}
    assert counted([*raws, annotation(segmentation=[[1, 1, 9, 2, 4, 8]])], *[(640, 480)] * 2) == {}


def test_an_ordinary_file_costs_no_more_than_its_first_object() -> None:
    patterns = Patterns(np.array([(640, 480)]))
    patterns.add(annotation(bbox=[400.0, 300.0, 20.0, 20.0], segmentation=[[1, 1, 9, 2, 4, 8]]), 0)
    assert patterns.left == []


def test_every_reader_tells(tmp_path: Path) -> None:
    images = [image(id=n + 1, file_name=f"{n}.jpg", width=400, height=300) for n in range(4)]
    files = {f"{n}.jpg": picture(400, 300) for n in range(4)}
    raws = objects(12, 4, 100, 100)
    index = load(tmp_path, images=images, annotations=raws, files=files)
    (kind,) = index.problems.counts
    assert "in percent of the image" in kind
    assert "12 objects" in index.problems.examples[kind][0]
    truth = of_source(tmp_path / "annotations" / "instances_train.json")
    assert kind in truth.problems.counts
