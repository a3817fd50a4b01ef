"""Memory that is used again must never be memory that somebody still looks at."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from autotimm.images import buffers

SIDE = (512, 512)  # 256 KiB


@pytest.fixture(autouse=True)
def no_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_buffers", [])


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_that_is_let_go_is_used_again() -> None:
    first = buffers.empty(SIDE)
    at = address(first)
    del first
    assert address(buffers.empty(SIDE)) == at


def test_a_buffer_serves_other_shapes_and_types_of_its_size() -> None:
    at = address(buffers.empty((1024, 256)))
    again = buffers.empty((256, 256), np.float32)
    assert (address(again), again.shape, again.dtype) == (at, (256, 256), np.float32)


@pytest.mark.parametrize(
    "hold",
    [
        lambda array: array,
        lambda array: array[100:110, 3],
        lambda array: array.T[::2, 5:9],
        lambda array: memoryview(array),
        lambda array: torch.from_numpy(array),
        lambda array: torch.from_numpy(array).view(-1, 2)[5],
        lambda array: torch.from_numpy(array).untyped_storage(),
    ],
)
def test_memory_that_is_held_in_any_way_is_left_alone(hold) -> None:
    array = buffers.empty(SIDE)
    at = address(array)
    held = hold(array)
    del array
    gc.collect(0)  # all of this test: an older generation takes a second
    others = [buffers.empty(SIDE) for _ in range(3)]
    assert at not in map(address, others)
    del held
    assert address(buffers.empty(SIDE)) == at


def test_a_small_buffer_makes_way_for_a_larger_one() -> None:
    for side in range(400, 900, 100):
        buffers.empty((side, side))
    assert [len(buffer) for buffer in buffers._buffers] == [800 * 800]


def test_memory_that_was_needed_once_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_IDLE", 5 << 18)
    held = [buffers.empty(SIDE) for _ in range(20)]
    places = [address(array) for array in held]
    del held[2:4], held[10:]
    again = buffers.empty(SIDE)
    assert len(buffers._buffers) == 10 + 1 + 5
    assert address(again) in places and address(again) not in map(address, held)
    others = [buffers.empty(SIDE) for _ in range(6)]
    assert len({*map(address, [*held, again, *others])}) == 10 + 1 + 6


def test_a_far_larger_buffer_is_left_to_larger_arrays() -> None:
    large = address(buffers.empty((4096, 4096)))
    assert address(buffers.empty(SIDE)) != large
    assert address(buffers.empty((4096, 4000))) == large


@pytest.mark.parametrize("shape", [(0, 3), (10, 10), (1 << 14, 1 << 14)])
def test_what_is_small_or_huge_is_not_kept(shape) -> None:
    assert buffers.empty(shape).shape == shape
    assert buffers._buffers == []


def test_threads_never_share_a_buffer() -> None:
    together = threading.Barrier(4)

    def work(number: int) -> None:
        for _ in range(200):
            array = buffers.empty(SIDE)
            array[...] = number
            together.wait()
            assert (array == number).all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(buffers._buffers) <= 8  # a thread asks for its next while it has its last
