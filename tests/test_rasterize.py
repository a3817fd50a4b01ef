"""Rasterising many polygons at once against pycocotools, one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask

from autotimm.rasterize import rasterize

Shape = tuple[list[list[float]], int, int]


def expected(polygons: list[list[float]], height: int, width: int) -> tuple[dict, int]:
    rles = mask.frPyObjects(polygons, height, width)
    rle = mask.merge(rles) if len(rles) > 1 else rles[0]
    return {"size": [height, width], "counts": rle["counts"].decode()}, int(mask.area(rle))


def check(shapes: list[Shape]) -> None:
    made = rasterize(shapes)
    assert len(made) == len(shapes)
    for shape, result in zip(shapes, made, strict=True):
        assert result == expected(*shape), shape


@pytest.mark.parametrize("name", ["coco_mini", "fruits_nuts", "balloon", "microscopy_flakes"])
def test_real_annotations(shared_data: Path, name: str) -> None:
    shapes: list[Any] = []
    for file in sorted((shared_data / name / "annotations").glob("*.json")):
        content = json.loads(file.read_bytes())
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        shapes += [
            (annotation["segmentation"], *sizes[annotation["image_id"]])
            for annotation in content["annotations"]
            if isinstance(annotation["segmentation"], list)
        ]
    assert shapes
    check(shapes)


@pytest.mark.parametrize("seed", range(40))
def test_random_polygons(seed: int) -> None:
    """Small images, so that outlines meet corners, leave the image and run over each other."""
    rng = np.random.default_rng(seed)
    shapes: list[Shape] = []
    for _ in range(50):
        height, width = (int(side) for side in rng.integers(1, 120, 2))
        points = rng.uniform(-30, 150, (rng.integers(3, 12), 2))
        # Coordinates on whole, half and fifth pixels, where rounding has to be the same too.
        grid = rng.choice([0, 1, 2, 5])
        points = np.round(points * grid) / grid if grid else points
        points = np.repeat(points, rng.integers(1, 3), axis=0)  # edges without a length
        shapes.append(([points.ravel().tolist()] * rng.integers(1, 3), height, width))
    check(shapes)


def test_ties_fall_as_rounding_has_it() -> None:
    """Lines through points that lie exactly between two fifths: steep and flat, up and down."""
    rng = np.random.default_rng(7)
    shapes: list[Shape] = []
    for _ in range(400):
        dx, dy = int(rng.integers(1, 12)), int(rng.integers(12, 90))
        x, y = int(rng.integers(0, 100)), int(rng.integers(0, 100))
        far = x + dx * int(rng.choice([-1, 1]))
        polygon = [v / 5 for v in (x, y, far, y + dy, far + 300, y + dy, x + 300, y)]
        mirrored = [v for point in zip(polygon[1::2], polygon[::2], strict=True) for v in point]
        shapes += [([polygon], 64, 128), ([mirrored], 128, 64)]
    check(shapes)


def test_large_images_need_long_numbers() -> None:
    for side in (5_000, 46_000):
        high, low = side - 3.5, 2.25
        check([([[low, low, high, low + 1, high, high, low + 1, high]], side, side)])
        corner = [high, low, high + 2, low, high + 1, high]
        check([([corner], side, side), ([corner], 9, 9), ([corner], side, side)])


def test_masks_without_a_pixel_and_whole_images() -> None:
    check([([[9, 9, 9.1, 9, 9.1, 9.1]], 20, 20), ([[-5, -5, 30, -5, 30, 30, -5, 30]], 20, 20)])
    check([([[-9, 0, -1, 0, -1, 9]], 20, 20), ([[30, 0, 40, 0, 40, 9]], 20, 20)])
    assert rasterize([]) == []


def test_the_neighbours_of_a_shape_do_not_change_it() -> None:
    rng = np.random.default_rng(1)
    shapes: list[Shape] = [
        ([rng.uniform(0, 60, 16).tolist()], int(rng.integers(9, 60)), 50) for _ in range(30)
    ]
    assert rasterize(shapes) == [rasterize([shape])[0] for shape in shapes]
