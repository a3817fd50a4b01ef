"""What is read ahead follows the pixels of the images, in order, and ends when nobody asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autotimm.inference import ahead
from autotimm.inference.ahead import read_ahead
from autotimm.structures import InputError

SIDE, PIXELS = 40, 1600


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The pixels that were being decoded, or waited for the caller, at each decoding."""
    read, now, seen, lock = ahead.image_of, [0], [], threading.Lock()

    class Counted(np.ndarray):
        def __del__(self) -> None:
            if self.base is None or not isinstance(self.base, Counted):
                with lock:
                    now[0] -= self.size // 3

    def counted(item, *, admit, **options):
        def admitted(pixels: int) -> None:
            admit(pixels)
            with lock:
                now[0] += pixels
                seen.append(now[0])

        return read(item, admit=admitted, **options).view(Counted)

    monkeypatch.setattr(ahead, "image_of", counted)
    yield seen
    assert now[0] == 0, "nothing is kept"


def pictures(folder: Path, count: int) -> list[str]:
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.new("RGB", (SIDE, SIDE), (i, i, i)).save(path)
    return [str(path) for path in paths]


@pytest.mark.parametrize(("fits", "most"), [(0.5, 3), (1, 3), (3, 5), (100, 10)])
def test_pixels_limit_what_is_read_ahead(
    fits: float, most: int, held: list[int], tmp_path: Path
) -> None:
    """The caller may hold the last one while the next is decoded, and a thread the one before."""
    paths = pictures(tmp_path, 12)
    found = [int(p[0, 0, 0]) for p in read_ahead(paths, budget=int(fits * PIXELS))]
    assert found == list(range(12))
    assert max(held) <= most * PIXELS
    if fits == 100:
        assert max(held) >= 3 * PIXELS, "reads ahead where there is room"


def test_what_cannot_be_read_takes_no_room_and_keeps_its_place(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 4)
    Path(paths[0]).write_bytes(b"no image")
    Path(paths[2]).write_bytes(Path(paths[2]).read_bytes()[:60])
    kinds = [isinstance(one, InputError) for one in read_ahead(paths * 3, budget=PIXELS)]
    assert kinds == [True, False, True, False] * 3


def test_arrays_wait_no_further_than_the_budget() -> None:
    drawn = []

    def frames() -> Iterator[np.ndarray]:
        for i in range(12):
            drawn.append(i)
            yield np.full((SIDE, SIDE, 3), i, np.uint8)

    for i, frame in enumerate(read_ahead(frames(), budget=2 * PIXELS)):
        assert frame[0, 0, 0] == i and len(drawn) <= i + 3


def test_a_caller_that_stops_leaves_no_thread_waiting(tmp_path: Path) -> None:
    reading = read_ahead(pictures(tmp_path, 12), budget=1)
    next(reading)
    reading.close()
    assert not [one for one in threading.enumerate() if "ThreadPoolExecutor" in one.name]
