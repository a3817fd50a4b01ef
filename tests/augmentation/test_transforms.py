"""The geometry of an image on the canvas: against tracked points and OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
from canvas import FILL, picture

from autotimm.augmentation.presets import (
    Augmentation,
)
from autotimm.augmentation.transforms import Placement, fit, jitter, place_boxes, render


def test_letterbox_keeps_the_aspect_at_the_top_left() -> None:
    placement = fit(640, 480, (320, 512), "letterbox")
    assert placement == Placement((0, 0, 640, 480), (0, 0, 427, 320))
    assert placement.scale == (427 / 640, 320 / 480)
    assert placement.matrix.tolist() == [[427 / 640, 0, 0], [0, 320 / 480, 0]]
    canvas = render(np.full((480, 640, 3), 9, np.uint8), placement, (320, 512), FILL)
    assert (canvas[:, :427] == 9).all()
    assert (canvas[:, 427:] == FILL).all()
    assert fit(640, 480, (320, 512), "stretch").place == (0, 0, 512, 320)
    assert fit(3000, 1, (64, 64), "letterbox").place == (0, 0, 64, 1)


def test_a_placement_takes_pixels_where_its_matrix_says() -> None:
    """A dot in the image appears on the canvas where the matrix maps it."""
    rng = np.random.default_rng(0)
    wild = Augmentation(flip=0.5, scale=(0.4, 2.5))
    seen = flipped = 0
    for _ in range(200):
        width, height = (int(side) for side in rng.integers(50, 200, 2))
        canvas = (96, 128)
        placement = jitter(width, height, canvas, "letterbox", wild, rng)
        x, y = rng.integers(8, width - 8), rng.integers(8, height - 8)
        image = np.zeros((height, width, 3), np.uint8)
        image[y - 6 : y + 7, x - 6 : x + 7] = 255
        out = render(image, placement, canvas, (0, 0, 0))
        at = placement.matrix @ (x + 0.5, y + 0.5, 1)
        reach = 7 * np.array(placement.scale)
        if not ((at > reach + 1) & (at < np.array(canvas[::-1]) - reach - 1)).all():
            continue
        rows, columns = np.nonzero(out[..., 0] > 127)
        assert np.allclose((columns.mean() + 0.5, rows.mean() + 0.5), at, atol=0.6)
        seen += 1
        flipped += placement.flip
    assert seen > 60
    assert 0.3 < flipped / seen < 0.7


def test_jitter_covers_its_range_and_stays_on_the_canvas() -> None:
    rng = np.random.default_rng(1)
    scales, places = [], set()
    for _ in range(500):
        placement = jitter(
            100, 50, (64, 64), "letterbox", Augmentation(flip=0, scale=(0.5, 2)), rng
        )
        assert not placement.flip
        (wx1, wy1, wx2, wy2), (px1, py1, px2, py2) = placement.window, placement.place
        assert 0 <= wx1 < wx2 <= 100
        assert 0 <= wy1 < wy2 <= 50
        assert 0 <= px1 < px2 <= 64
        assert 0 <= py1 < py2 <= 64
        sx, sy = placement.scale
        assert abs(sx / sy - 1) < 0.08  # sizes are whole pixels
        scales.append(np.log2(sx / 0.64))
        places.add((wx1, px1, py1))
    assert min(scales) < -0.9
    assert max(scales) > 0.9
    assert abs(np.mean(scales)) < 0.1  # log-uniform
    assert len(places) > 200


def test_render_matches_cv2() -> None:
    image = picture(100, 120)
    cropped = render(image, Placement((20, 10, 80, 70), (0, 0, 90, 90), flip=True), (96, 96), FILL)
    truth = cv2.resize(image[10:70, 20:80], (90, 90), interpolation=cv2.INTER_LINEAR)[:, ::-1]
    assert np.array_equal(cropped[:90, :90], truth)
    cubic = render(image, fit(120, 100, (200, 240), "stretch"), (200, 240), FILL, "bicubic")
    assert np.array_equal(cubic, cv2.resize(image, (240, 200), interpolation=cv2.INTER_CUBIC))
    for how in ("bilinear", "bicubic"):
        shrunk = render(image, fit(120, 100, (32, 32), "stretch"), (32, 32), FILL, how)
        assert np.array_equal(shrunk, cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA))
    same = render(image, fit(120, 100, (100, 120), "letterbox"), (100, 120), FILL)
    assert np.array_equal(same, image)
    assert same is not image


def test_boxes_are_clipped_and_what_is_hardly_seen_counts_as_gone() -> None:
    boxes = np.array(
        [
            [10, 10, 20, 20],  # inside
            [25, 10, 10, 10],  # half outside the window
            [29.5, 10, 10, 10],  # a twentieth
            [-10, 0, 20, 10],  # half outside the image, the rest visible
            [15, 15, 0.4, 10],  # less than a pixel wide on the canvas
            [50, 30, 5, 5],  # not visible
        ],
        dtype=float,
    )
    placement = Placement((0, 0, 30, 40), (4, 0, 64, 80))
    found, share = place_boxes(boxes, placement, 60, 40)
    assert found[0].tolist() == [24, 20, 64, 60]
    assert found[1].tolist() == [54, 20, 64, 40]
    assert found[3].tolist() == [4, 0, 24, 20]
    assert np.allclose(share, [1, 0.5, 0.05, 1, 0, 0])
    flipped, _ = place_boxes(boxes[:2], Placement((0, 0, 30, 40), (4, 0, 64, 80), True), 60, 40)
    assert flipped.tolist() == [[4, 20, 44, 60], [4, 20, 14, 40]]
    assert place_boxes(np.zeros((0, 4)), placement, 60, 40)[0].shape == (0, 4)
