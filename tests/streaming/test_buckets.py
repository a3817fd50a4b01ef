"""Aspect-ratio buckets: the canvas of each image, against a loop over images; memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from autotimm.streaming.buckets import BucketPlan, assign
from autotimm.streaming.order import EpochOrder
from autotimm.structures import World

CANVASES = ((640, 640), (512, 640), (640, 512))


@pytest.mark.parametrize(
    ("width", "height", "canvas"),
    [
        (640, 480, (512, 640)),
        (480, 640, (640, 512)),
        (640, 512, (512, 640)),  # just fits
        (640, 513, (640, 640)),
        (500, 500, (640, 640)),
        (4000, 100, (512, 640)),
        (1, 1, (640, 640)),
    ],
)
def test_the_smallest_canvas_that_makes_nothing_smaller(
    width: int, height: int, canvas: tuple[int, int]
) -> None:
    assert CANVASES[assign(np.array([[width, height]]), CANVASES)[0]] == canvas


def test_of_several_that_do_the_smallest() -> None:
    canvases = ((640, 640), (320, 640), (512, 640), (448, 640))
    sizes = np.array([[640, h] for h in (300, 320, 321, 448, 449, 512, 513)])
    chosen = [canvases[c][0] for c in assign(sizes, canvases)]
    assert chosen == [320, 320, 448, 448, 512, 512, 640]
    assert assign(sizes, ()).tolist() == [0] * 7


def test_gather_brings_values_into_the_order() -> None:
    sizes = np.array([5, 0, 70, 3, 9])
    values = np.arange(87).astype(np.uint8)
    firsts = np.cumsum(sizes) - sizes
    for shuffle in (False, True):
        order = EpochOrder(sizes, seed=1, epoch=2, shuffle=shuffle, window=2)
        shard, index = order.locate(np.arange(87))
        assert np.array_equal(order.gather(values), firsts[shard] + index)


def test_a_million_samples_stay_small() -> None:
    order = EpochOrder(np.full(1000, 1000), seed=0, epoch=0, shuffle=True)
    sizes = np.random.default_rng(0).integers(400, 641, (1_000_000, 2))
    known = {CANVASES: assign(sizes, CANVASES)}
    tracemalloc.start()
    kept = BucketPlan(order, World(3, 64), 8, 0, CANVASES, known)
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept.steps == -(-1_000_000 // 512)
    assert now < 6e6
    assert peak < 24e6


def test_substitutes_suit_the_canvas_first() -> None:
    known = {CANVASES: np.array([1, 2, 1, 0, 2, 1, 1, 2], np.uint8)}
    order = EpochOrder(np.array([8]), seed=0, epoch=0, shuffle=False)
    made = BucketPlan(order, World(), 2, 0, CANVASES, known)
    assert [made.positions(s).tolist() for s in range(made.steps)] == [
        [0, 2],
        [1, 4],
        [5, 6],
        [3, 7],
    ]
    assert [made.canvas(s) for s in range(made.steps)] == [CANVASES[i] for i in (1, 2, 1, 0)]
    assert list(made.substitutes(2, 0)) == [5, 6, 8, 3, 4, 7, 9]
    assert list(made.substitutes(3, 3)) == [4, 5, 6, 7, 8, 9, 10]
