"""What is read ahead follows the pixels of the images, in order, and ends when nobody asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import forked
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


MEASURED = """
import sys
from pathlib import Path
from autotimm.cli import main

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

def predict(images, out):
    sys.argv[1:] = ["predict", images, "--checkpoint", checkpoint, "--format", "json", "--out", out]
    try:
        main.main()
    except SystemExit as ended:
        assert not ended.code

checkpoint, small, large, out = sys.argv[1:]
predict(small, out)  # the model and what it needs
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
predict(large, out)
print("more:", memory("VmHWM") - before)
"""


@pytest.mark.slow
def test_a_run_over_large_pictures_takes_little_more_than_one(
    boxes_only: Path, tmp_path: Path
) -> None:
    """By a real process: before, nine were read ahead."""
    side = 8200  # a picture is more than what is read ahead
    folders = [tmp_path / "small", tmp_path / "large"]
    for folder, size in zip(folders, (64, side), strict=True):
        folder.mkdir()
        Image.new("RGB", (size, size), (90, 120, 150)).save(folder / "0.png")
    for i in range(1, 8):
        (folders[1] / f"{i}.png").hardlink_to(folders[1] / "0.png")
    done = forked.run("-c", MEASURED, boxes_only, *folders, tmp_path / "found")
    assert done.returncode == 0, done.stderr[-3000:]
    more = int(done.stdout.split("more:")[1])
    one = side * side * 3
    # The caller has one; of the next there are PIL's copy of 4 bytes a pixel and ours.
    assert one < more < 5 * one
