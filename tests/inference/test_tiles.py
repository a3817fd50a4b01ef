"""Tiles cover an image; objects cut by their borders come together again."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest

from autotimm.inference.tiles import joined, piece_of, tile_windows


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("size", [(64, 64), (65, 200), (1000, 333), (10, 700), (129, 128)])
def test_tiles_cover_the_image_and_overlap(size: tuple[int, int], overlap: float) -> None:
    height, width = size
    windows = tile_windows(height, width, 64, overlap)
    seen = np.zeros(size, int)
    for y1, x1, y2, x2 in windows:
        assert (y2 - y1, x2 - x1) == (min(64, height), min(64, width))
        seen[y1:y2, x1:x2] += 1
    assert seen.min() == 1
    columns = sorted({(w[1], w[3]) for w in windows})
    shared = [first[1] - second[0] for first, second in pairwise(columns)]
    assert all(length >= int(64 * overlap) for length in shared)


def blobs(seed: int) -> tuple[np.ndarray, int]:
    """[300, 400] of 0 and 1, 2, ... for separate objects of all sizes, some larger than a tile."""
    rng = np.random.default_rng(seed)
    canvas = np.zeros((300, 400), np.uint8)
    for _ in range(14):
        centre = (int(rng.integers(0, 400)), int(rng.integers(0, 300)))
        axes = (int(rng.integers(3, 110)), int(rng.integers(3, 30)))
        cv2.ellipse(canvas, centre, axes, int(rng.integers(0, 180)), 0, 360, 1, -1)
    count, numbers = cv2.connectedComponents(canvas, connectivity=8)
    return numbers, count


@pytest.mark.parametrize("seed", range(5))
def test_objects_cut_by_tiles_are_whole_again_and_once(seed: int) -> None:
    numbers, count = blobs(seed)
    pieces = []
    for window in tile_windows(300, 400, 96, 0.3):
        y1, x1, y2, x2 = window
        part = numbers[y1:y2, x1:x2]
        for number in range(1, count):
            ys, xs = np.nonzero(part == number)
            if len(ys):
                top, left, bottom, right = ys.min(), xs.min(), ys.max() + 1, xs.max() + 1
                inside = part[top:bottom, left:right] == number
                label = number % 3
                pieces.append(piece_of(window, label, number / 100, y1 + top, x1 + left, inside))
    found = joined(pieces)
    assert [piece.score for piece in found] == [n / 100 for n in range(count - 1, 0, -1)]
    for piece, number in zip(found, range(count - 1, 0, -1), strict=True):
        whole = np.zeros((300, 400), bool)
        height, width = piece.inside.shape
        place = np.s_[piece.top : piece.top + height, piece.left : piece.left + width]
        whole[place] = piece.inside
        np.testing.assert_array_equal(whole, numbers == number)


def test_neighbours_that_touch_in_the_overlap_stay_two() -> None:
    left, right = (0, 0, 64, 64), (0, 44, 64, 108)
    # Side by side within what both tiles see; each tile sees both.
    first = [piece_of(tile, 1, 0.9, 10, 46, np.ones((20, 8), bool)) for tile in (left, right)]
    second = [piece_of(tile, 1, 0.8, 10, 54, np.ones((20, 8), bool)) for tile in (left, right)]
    assert [(p.left, p.inside.shape) for p in joined(first + second)] == [
        (46, (20, 8)),
        (54, (20, 8)),
    ]


@pytest.mark.parametrize(("shift", "count"), [(2, 1), (7, 2)])
def test_what_overlaps_by_half_is_one_object_with_the_better_score(shift: int, count: int) -> None:
    """Of 16 pixels across, IoU 14/18 and 9/23."""
    inside = np.ones((20, 16), bool)
    left, right = (0, 0, 64, 64), (0, 40, 64, 104)
    pieces = [
        piece_of(left, 1, 0.3, 10, 40, inside),
        piece_of(right, 1, 0.9, 10, 40 + shift, inside),
    ]
    found = joined(pieces)
    assert len(found) == count
    assert found[0].score == 0.9
    if count == 1:
        assert (found[0].left, found[0].inside.shape) == (40, (20, 16 + shift))


def test_what_covers_two_objects_by_mistake_does_not_join_them() -> None:
    """Each object ends within its own tile, where what covers both goes on."""
    tiles = [(0, 0, 64, 128), (0, 64, 64, 192), (0, 128, 64, 256)]
    one = piece_of(tiles[0], 1, 0.95, 10, 70, np.ones((20, 40), bool))
    two = piece_of(tiles[2], 1, 0.90, 10, 140, np.ones((20, 40), bool))
    both = piece_of(tiles[1], 1, 0.06, 10, 70, np.ones((20, 110), bool))
    found = [(p.score, p.left, p.width) for p in joined([one, both, two])]
    assert found == [(0.95, 70, 40), (0.90, 140, 40), (0.06, 70, 110)]


def test_a_second_one_of_a_tile_is_not_joined_with_the_first() -> None:
    """What NMS has left beside an object in one tile is no reason to make it larger."""
    left, right = (0, 0, 64, 64), (0, 32, 64, 96)
    inside = np.ones((20, 20), bool)
    good = [piece_of(tile, 1, score, 10, 36, inside) for tile, score in ((left, 0.9), (right, 0.8))]
    spare = piece_of(right, 1, 0.1, 10, 36, np.ones((34, 20), bool))
    found = [(p.score, p.height) for p in joined([*good, spare])]
    assert found == [(0.9, 20), (0.1, 34)]


def test_boxes_are_the_models_and_of_what_is_joined_their_hull() -> None:
    left, right = (0, 0, 64, 64), (0, 44, 64, 108)
    inside = np.ones((20, 20), bool)
    alone = piece_of(left, 1, 0.9, 40, 5, inside, (5.25, 40.5, 24.5, 59.5))
    cut = [
        piece_of(left, 2, 0.8, 10, 44, inside, (44.25, 10.5, 64.0, 30.5)),
        piece_of(right, 2, 0.7, 10, 44, np.ones((20, 40), bool), (44.5, 10.25, 84.75, 30.0)),
    ]
    assert [p.box for p in joined([alone, *cut])] == [alone.box, (44.25, 10.25, 84.75, 30.5)]


def test_other_classes_and_the_same_tile_are_left_apart() -> None:
    inside = np.ones((20, 8), bool)
    left, right = (0, 0, 64, 64), (0, 44, 64, 108)
    pieces = [piece_of(left, 1, 0.9, 10, 46, inside), piece_of(right, 2, 0.8, 10, 46, inside)]
    assert len(joined(pieces)) == 2
    pieces = [piece_of(left, 1, 0.9, 10, 46, inside), piece_of(left, 1, 0.8, 10, 46, inside)]
    assert len(joined(pieces)) == 2
    assert joined([]) == []
