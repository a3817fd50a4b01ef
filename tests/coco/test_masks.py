"""Masks against pycocotools, and crops against a look at every cell."""

from __future__ import annotations

import contextlib
import io
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from autotimm.coco import masks
from autotimm.coco.runs import read_one, read_runs

REAL = [
    "fruits_nuts",
    "balloon",
    "microscopy_flakes",
    pytest.param("coco_mini", marks=pytest.mark.release),
]
HEIGHT, WIDTH = 80, 110


def random_mask(seed: int, height: int = 37, width: int = 53) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.random((height // 6 + 1, width // 6 + 1)) < rng.random()
    return np.kron(coarse, np.ones((6, 6), np.uint8))[:height, :width].astype(np.uint8)


def as_text(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.mark.parametrize("name", REAL)
def test_real_annotations_equal_pycocotools(shared_data: Path, name: str) -> None:
    seen = 0
    for file in sorted((shared_data / name / "annotations").glob("instances_*.json")):
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(file))
        for annotation in truth.anns.values():
            image = truth.imgs[annotation["image_id"]]
            rle = masks.to_rle(annotation["segmentation"], image["height"], image["width"])
            assert rle == as_text(truth.annToRLE(annotation))
            expected = truth.annToMask(annotation)
            assert np.array_equal(masks.decode(rle), expected)
            assert masks.area(rle) == np.count_nonzero(expected)
            (runs,), _ = read_runs([rle["counts"]])
            dense = np.repeat(np.arange(runs.size) & 1, runs).reshape(expected.shape[::-1]).T
            assert np.array_equal(dense, expected)
            seen += 1
    assert seen


@pytest.mark.parametrize("seed", range(20))
def test_encodings_of_one_mask_agree(seed: int) -> None:
    mask = random_mask(seed)
    rle = masks.encode(mask.astype(bool))
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    counts = counts if not flat[0] else [0, *counts]
    uncompressed = {"size": list(mask.shape), "counts": counts}
    assert masks.to_rle(uncompressed, *mask.shape) == rle
    assert masks.to_rle(rle, *mask.shape) == rle
    assert read_runs([rle["counts"]])[0][0].tolist() == counts
    assert list(read_one(rle["counts"])) == counts
    np.testing.assert_array_equal(masks.decode(rle), mask)
    assert masks.decode(rle).flags.c_contiguous and masks.decode(rle).dtype == np.uint8
    ys, xs = np.nonzero(mask)
    expected = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if xs.size else [0, 0, 0, 0]
    assert masks.box(rle) == expected


@pytest.mark.parametrize("seed", range(20))
def test_encoding_of_a_window_is_that_of_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for part in (random_mask(seed), np.ones((37, 53), np.uint8), np.zeros((37, 53), np.uint8)):
        top, left, below, right = (rng.integers(0, 9, 4) * rng.integers(0, 2, 4)).tolist()
        whole = np.pad(part, ((top, below), (left, right)))
        assert masks.encode_window(part, top, left, *whole.shape) == masks.encode(whole)
        columns = part[:, :0]  # none
        empty = masks.encode_window(columns, top, left, *whole.shape)
        assert empty == masks.encode(np.zeros_like(whole))
    with pytest.raises(ValueError, match="leaves"):
        masks.encode_window(part, 1, 0, *part.shape)


def test_runs_of_a_large_image_survive() -> None:
    mask = np.zeros((5000, 7000), np.uint8)
    mask[4321, 6543] = 1  # runs of 26 bits, and differences that are negative
    rle = masks.encode(mask)
    position = 6543 * 5000 + 4321
    assert read_runs([rle["counts"]])[0][0].tolist() == [position, 1, mask.size - position - 1]


def test_a_short_text_is_read_as_a_long_one() -> None:
    """Damaged texts, too: both readers refuse the same ones."""
    generator = random.Random(0)
    read, refused = 0, 0
    for _ in range(300):
        text = "".join(chr(generator.randint(46, 113)) for _ in range(generator.randint(0, 9)))
        try:
            expected = read_runs([text])[0][0].tolist()
        except ValueError as error:
            with pytest.raises(ValueError, match=str(error)):
                read_one(text)
            refused += 1
        else:
            assert list(read_one(text)) == expected
            read += 1
    assert min(read, refused) > 20


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "neither polygons nor RLE"),
        ("abc", "neither polygons nor RLE"),
        ([], "empty"),
        ([[]], "fewer than 3 points"),
        ([[1, 2, 3, 4]], "fewer than 3 points"),  # pycocotools would take it for a box
        ([[1, 2, 3, 4, 5, 6, 7]], "odd number"),
        ([1.0, 2, 3, 4, 5, 6], "not a list of numbers"),
        ([["1", "2", "3", "4", "5", "6"]], "not a list of numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not finite"),
        ([[1, 2, 3, 4, 5, float("inf")]], "not finite"),
        ([[1, 2, 3, 4, 5, 10**400]], "polygon"),
        ([[1, 2, 3, 4, 5, 1e12]], "far outside"),
        ([[0, 0, 9e5, 9e5] * 10], "outline too long"),
        ({"counts": [10]}, "another size"),
        ({"size": [5, 4], "counts": [20]}, "another size"),
        ({"size": [4, 5]}, "without counts"),
        ({"size": [4, 5], "counts": [21]}, "broken"),
        ({"size": [4, 5], "counts": [5, 14]}, "do not fill"),
        ({"size": [4, 5], "counts": [25, -5]}, "broken"),
        ({"size": [4, 5], "counts": [1.5, 18.5]}, "broken"),
        ({"size": [4, 5], "counts": ["a"]}, "broken"),
        ({"size": [4, 5], "counts": [10**30]}, "broken"),
        ({"size": [4, 5], "counts": []}, "broken"),
        ({"size": [4, 5], "counts": ""}, "broken"),
        ({"size": [4, 5], "counts": "\x01"}, "broken"),
        ({"size": [4, 5], "counts": "ooooooooooooooo0"}, "broken"),
        ({"size": [4, 5], "counts": "o"}, "broken"),
        ({"size": [4, 5], "counts": "é"}, "broken"),
        ({"size": [4, 5], "counts": "1"}, "do not fill"),
    ],
)
def test_what_is_no_mask_is_refused(segmentation: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        masks.to_rle(segmentation, 4, 5)


@pytest.mark.parametrize("counts", [[2**32], [0, 2**32], [2**40 - 2**20, 2**20]])
def test_a_run_of_more_than_32_bits_is_refused(counts: list[int]) -> None:
    size = [sum(counts) // 2**10, 2**10]
    with pytest.raises(ValueError, match="broken"):
        masks.to_rle({"size": size, "counts": counts}, *size)


# Polygons: what shards hold is what pycocotools makes of the same, byte for byte.


def check_polygons(polygons: list[list[float]], height: int, width: int) -> None:
    parts = coco_mask.frPyObjects(polygons, height, width)
    expected = coco_mask.merge(parts) if len(parts) > 1 else parts[0]
    rle = masks.to_rle(polygons, height, width)
    assert rle == as_text(expected), (polygons, height, width)
    assert masks.area(rle) == coco_mask.area(expected)
    assert masks.box(rle) == (coco_mask.toBbox(expected) @ CORNERS).tolist()


CORNERS = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])  # of x, y, w, h

# A polygon of n points for an image of some side, from a generator of random numbers.
OUTLINES: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "inside": lambda rng, side, n: rng.uniform(0, side, (n, 2)),
    "leaves": lambda rng, side, n: rng.uniform(-3 * side, 4 * side, (n, 2)),
    "of halves": lambda rng, side, n: np.round(rng.uniform(-20, side + 20, (n, 2)) * 2) / 2,
    "of fifths": lambda rng, side, n: np.round(rng.uniform(-20, side + 20, (n, 2)) * 5) / 5,
    "between fifths": lambda rng, side, n: (np.round(rng.uniform(0, side, (n, 2)) * 5) + 0.5) / 5,
    "tiny": lambda rng, side, n: rng.uniform(0, side, 2) + rng.uniform(-0.6, 0.6, (n, 2)),
    "repeated points": lambda rng, side, n: rng.uniform(0, side, (n, 2)).repeat(3, axis=0),
    "flat": lambda rng, side, n: np.linspace(*rng.uniform(-9, side + 9, (2, 2)), n),
    "far": lambda rng, side, n: rng.uniform(-200 * side, 200 * side, (n, 2)),
}


@pytest.mark.parametrize("kind", OUTLINES)
def test_polygons_equal_pycocotools(kind: str) -> None:
    """Small images, so that outlines meet corners and run over each other."""
    rng = np.random.default_rng(sorted(OUTLINES).index(kind))
    for _ in range(10 if kind == "far" else 200):
        height, width, parts = rng.integers(1, (120, 120, 4)).tolist()
        side = max(height, width)
        polygons = [OUTLINES[kind](rng, side, int(rng.integers(3, 12))) for _ in range(parts)]
        check_polygons([points.ravel().tolist() for points in polygons], height, width)


def test_ties_fall_as_pycocotools_has_them() -> None:
    """Lines through points that lie exactly between two fifths: steep and flat, up and down."""
    rng = np.random.default_rng(7)
    for _ in range(400):
        dx, dy = int(rng.integers(1, 12)), int(rng.integers(12, 90))
        x, y = int(rng.integers(0, 100)), int(rng.integers(0, 100))
        far = x + dx * int(rng.choice([-1, 1]))
        polygon = [v / 5 for v in (x, y, far, y + dy, far + 300, y + dy, x + 300, y)]
        mirrored = [v for point in zip(polygon[1::2], polygon[::2], strict=True) for v in point]
        check_polygons([polygon], 64, 128)
        check_polygons([mirrored], 128, 64)


@pytest.mark.parametrize("side", [5_000, 16_384])
def test_large_images_need_long_numbers(side: int) -> None:
    high, low = side - 3.5, 2.25
    check_polygons([[low, low, high, low + 1, high, high, low + 1, high]], side, side)
    check_polygons([[high, low, high + 2, low, high + 1, high]], side, side)


def test_masks_without_a_pixel_and_whole_images() -> None:
    check_polygons([[9, 9, 9.1, 9, 9.1, 9.1]], 20, 20)
    check_polygons([[-9, 0, -1, 0, -1, 9], [30, 0, 40, 0, 40, 9]], 20, 20)
    check_polygons([[-5, -5, 30, -5, 30, 30, -5, 30]], 20, 20)


def test_masks_start_no_threads() -> None:
    """A process that is forked later, as a data loader's workers are, would wait for them."""
    code = """
import os, numpy as np
from autotimm.coco import masks
before = len(os.listdir("/proc/self/task"))
polygons = np.random.default_rng(0).uniform(0, 300, (3000, 6)).tolist()
whole = masks.to_rle(polygons, 300, 300)
rles = [masks.to_rle([polygon], 300, 300) for polygon in polygons]
masks.union(rles), masks.encode(masks.decode(whole)), masks.decode_window(whole)
masks.difference(whole, rles[0]), masks.area(whole), masks.box(whole)
masks.encode_window(np.ones((9, 9)), 3, 4, 300, 300)
assert len(os.listdir("/proc/self/task")) == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Crops. The reference walks over the cells one by one and shares no code with the package.

MAPS = {
    "identity": ([[1, 0, 0], [0, 1, 0]], (0, 0, 112, 80)),
    "its own box": ([[1, 0, 0], [0, 1, 0]], (12.5, 3.5, 92, 57)),
    "larger": ([[2.7, 0, 3.2], [0, 2.7, -4.1]], (40, 10, 200, 150)),
    "smaller": ([[0.31, 0, 9], [0, 0.31, 5]], (10, 6, 40, 24)),
    "flipped": ([[-1.3, 0, 150], [0, 1.3, 2]], (20, 5, 140, 90)),
    "upside down": ([[1.0, 0, 0], [0, -1.0, 80]], (0, 0, 110, 80)),
    "cut by the canvas": ([[1.5, 0, -30], [0, 1.5, -20]], (0, 0, 60, 40)),
    "partly outside": ([[1, 0, 0], [0, 1, 0]], (-40, -30, 60, 50)),
}


def cell_centres(matrix: list, box: tuple, size: int) -> list[list[tuple[float, float]]]:
    """Original coordinates of every cell's centre, by Cramer's rule."""
    (a, b, c), (d, e, f) = matrix
    x1, y1, x2, y2 = box
    rows = []
    for i in range(size):
        row = []
        for j in range(size):
            u = x1 + (j + 0.5) / size * (x2 - x1) - c
            v = y1 + (i + 0.5) / size * (y2 - y1) - f
            row.append(((e * u - b * v) / (a * e - b * d), (a * v - d * u) / (a * e - b * d)))
        rows.append(row)
    return rows


@pytest.mark.parametrize("name", MAPS)
def test_crop_of_runs_is_what_lies_under_each_cell(name: str) -> None:
    matrix, box = MAPS[name]
    size = 40
    mask = random_mask(4, HEIGHT, WIDTH)
    expected = np.zeros((size, size), np.uint8)
    for i, row in enumerate(cell_centres(matrix, box, size)):
        for j, (x, y) in enumerate(row):
            if 0 <= x < WIDTH and 0 <= y < HEIGHT:
                expected[i, j] = mask[int(y), int(x)]
    got = masks.crop(masks.encode(mask), np.array(matrix, np.float64), box, size)
    assert got.shape == (size, size) and got.dtype == np.uint8
    assert 0.05 < expected.mean() < 0.95
    assert np.mean(got != expected) < 0.003, (
        "only cells whose centre is on a pixel's edge may differ"
    )


def test_crops_of_an_image_are_those_of_its_masks_one_by_one() -> None:
    rles = [masks.encode(random_mask(n, HEIGHT, WIDTH)) for n in range(4)]
    rles += [masks.encode(np.full((HEIGHT, WIDTH), value)) for value in (0, 1)]
    matrix = np.array([[-1.3, 0, 150], [0, 1.3, 2]])
    boxes = np.array([[20, 5, 140, 90], [30, 9, 99, 88], [28, 30, 91, 78]] * 2).astype(float)
    together = masks.crops(rles, matrix, boxes, 40)
    for got, rle, box in zip(together, rles, boxes, strict=True):
        np.testing.assert_array_equal(got, masks.crop(rle, matrix, box, 40))
    assert (together[5] >= together).all()
    assert not together[4].any()
    assert masks.crops([], matrix, np.zeros((0, 4))).shape == (0, 112, 112)


def test_crop_of_a_box_beside_the_image_is_empty() -> None:
    full = masks.encode(np.ones((HEIGHT, WIDTH), np.uint8))
    assert not masks.crop(full, np.eye(2, 3), (-30, 5, -2, 20)).any()
    assert not masks.crop(full, np.eye(2, 3), (5, HEIGHT + 1, 20, HEIGHT + 9)).any()
    assert masks.crop(full, np.eye(2, 3), (5, 5, 20, 20)).all()


@pytest.mark.parametrize("counts", ["", "o", "ooo6", "1", "kN0k"])
def test_crop_of_broken_counts_reads_nothing_beyond_them(counts: str) -> None:
    rles = [masks.encode(np.ones((9, 9))), {"size": [9, 9], "counts": counts}]
    boxes = np.array([[1.0, 1, 8, 8]] * 2)
    with pytest.raises(ValueError, match=r"broken|do not fill"):
        masks.crops(rles, np.eye(2, 3), boxes, 8)


@pytest.mark.parametrize("runs", [[80], [82], [9, 71], [0, 82], [9, 9, 62], [1, 9, 72]])
def test_crop_of_runs_that_do_not_fill_the_image_is_refused(runs: list[int]) -> None:
    """Wherever in the image the box is, and wherever among the masks the mask."""
    counts = coco_mask.frPyObjects({"size": [9, 9], "counts": runs}, 9, 9)["counts"].decode()
    rles = [masks.encode(np.ones((9, 9))), {"size": [9, 9], "counts": counts}]
    for box in ([0.0, 0, 1, 1], [20.0, 20, 30, 30]):
        for both in (rles, rles[::-1]):
            with pytest.raises(ValueError, match="do not fill"):
                masks.crops(both, np.eye(2, 3), np.array([box] * 2), 8)


def test_crop_of_runs_below_zero_is_refused() -> None:
    # 90, then -9: the sum is that of the image.
    rle: Any = {"size": [9, 9], "counts": "j2G"}
    with pytest.raises(ValueError, match="broken"):
        masks.crop(rle, np.eye(2, 3), (0, 0, 9, 9), 8)


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 5, 9, 5), (9, 5, 5, 9), (0, 0, np.nan, 9)])
def test_a_box_without_area_is_refused(box: tuple) -> None:
    with pytest.raises(ValueError, match="no area"):
        masks.crop(masks.encode(np.ones((9, 9))), np.eye(3)[:2], box)


@pytest.mark.parametrize("seed", range(20))
def test_the_difference_of_masks_is_that_of_their_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 9, 2)
    one, other = (rng.random((height, width)) < share for share in rng.choice([0, 0.3, 1], 2))
    expected = coco_mask.encode(np.asfortranarray((one & ~other).astype(np.uint8)))
    assert masks.difference(masks.encode(one), masks.encode(other)) == as_text(expected)


@pytest.mark.parametrize("seed", range(4))
def test_a_window_is_the_tight_part_of_the_whole(seed: int) -> None:
    mask = random_mask(seed)
    left, top, inside = masks.decode_window(masks.encode(mask))
    height, width = inside.shape
    np.testing.assert_array_equal(inside, mask[top : top + height, left : left + width])
    assert inside.sum() == mask.sum()
    assert inside.any(axis=0)[[0, -1]].all()
    assert inside.any(axis=1)[[0, -1]].all()


def test_the_window_of_an_empty_mask_is_empty() -> None:
    assert masks.decode_window(masks.encode(np.zeros((5, 7), np.uint8)))[2].size == 0
