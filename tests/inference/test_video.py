"""Videos: every frame upright and at its time, whatever the file; what is written, read again.

The videos are encoded here; OpenCV, which has an FFmpeg of its own, is the other reader.
"""

from __future__ import annotations

import json
import resource
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from autotimm.coco import masks
from autotimm.inference.video import Frame, frames
from autotimm.inference.write_video import VideoWriter
from autotimm.structures import Detections, InputError

av = pytest.importorskip("av")
TIMES = [0, 40, 100, 300, 333, 1000, 1040, 1500]  # milliseconds


def picture(number: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """A corner, and a grey that tells the number."""
    pixels = np.full((size[1], size[0], 3), 20 + 25 * number % 220, np.uint8)
    pixels[:12, :20] = (255, 0, 0)
    return pixels


def encode(
    path: Path,
    times: list[int] = TIMES,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    **how: Any,
) -> Path:
    with av.open(str(path), "w", **how) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            stream.codec_context.time_base = Fraction(1, 1000)
            stream.options = {"crf": "1", "g": "4"}
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
            frame.pts = time if codec == "libx264" else number
            frame.time_base = Fraction(1, 1000 if codec == "libx264" else 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def by_opencv(path: Path) -> list[tuple[float, np.ndarray]]:
    reader, found = cv2.VideoCapture(str(path)), []
    while True:
        there, pixels = reader.read()
        if not there:
            return found
        found.append((reader.get(cv2.CAP_PROP_POS_MSEC) / 1000, pixels[..., ::-1]))


@pytest.mark.parametrize("end", ["mp4", "mov", "mkv"])
def test_frames_have_the_times_that_were_encoded(end: str, tmp_path: Path) -> None:
    """Of a variable rate; in H.264 with frames that are stored in another order."""
    path = encode(tmp_path / f"a.{end}")
    found, other = list(frames(path)), by_opencv(path)
    assert [one.number for one in found] == list(range(len(TIMES)))
    assert [one.time for one in found] == pytest.approx([time / 1000 for time in TIMES], abs=1e-3)
    assert [one.time for one in found] == pytest.approx([time for time, _ in other], abs=1e-3)
    for one, (_, pixels) in zip(found, other, strict=True):
        assert one.pixels.shape == (48, 64, 3)
        assert np.abs(one.pixels.astype(int) - picture(one.number)).mean() < 4
        assert np.abs(one.pixels.astype(int) - pixels).mean() < 2
    assert [one.number for one in frames(path, every=3)] == [0, 3, 6]


@pytest.mark.parametrize(
    ("end", "codec"),
    [("avi", "mpeg4"), ("ts", "mpeg2video"), ("webm", "libvpx"), ("mpg", "mpeg2video")],
)
def test_other_containers(end: str, codec: str, tmp_path: Path) -> None:
    """A transport stream begins at another time than 0, which players call 0."""
    path = encode(tmp_path / f"a.{end}", codec=codec)
    found = list(frames(path))
    assert [one.time for one in found] == pytest.approx([n / 25 for n in range(8)], abs=2e-3)
    for one in found:
        assert np.abs(one.pixels.astype(int) - picture(one.number)).mean() < 12


MATRICES = {  # a, b, c, d of a display matrix, and what it does
    (1, 0, 0, 1): lambda p: p,
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),  # a phone held upright: a quarter clockwise
    (-1, 0, 0, -1): lambda p: np.rot90(p, 2),
    (0, -1, 1, 0): lambda p: np.rot90(p, 1),
    (-1, 0, 0, 1): lambda p: p[:, ::-1],
    (1, 0, 0, -1): lambda p: p[::-1],
    (0, 1, 1, 0): lambda p: p.transpose(1, 0, 2),
}


@pytest.mark.parametrize("matrix", list(MATRICES), ids=str)
def test_videos_are_turned_upright(matrix: tuple[int, ...], tmp_path: Path) -> None:
    plain = encode(tmp_path / "plain.mp4", TIMES[:2])
    data = bytearray(plain.read_bytes())
    at = data.index(b"tkhd") + 8 + 20 + 16  # ISO/IEC 14496-12, 8.3.2, version 0
    a, b, c, d = (one * 65536 for one in matrix)
    right, down = 64 * 65536, 48 * 65536
    moved = (right * (a < 0) + down * (c < 0), right * (b < 0) + down * (d < 0))
    data[at : at + 36] = np.array([a, b, 0, c, d, 0, *moved, 1 << 30], ">i4").tobytes()
    path = tmp_path / "turned.mp4"
    path.write_bytes(data)
    for one, stored in zip(frames(path), frames(plain), strict=True):
        np.testing.assert_array_equal(one.pixels, MATRICES[matrix](stored.pixels))
        if 0 not in (matrix[0] + matrix[3], matrix[1] - matrix[2]) or matrix[1] * matrix[2] < 0:
            (_, other), *_ = by_opencv(path)  # which knows of quarter turns alone
            assert one.pixels.shape == other.shape
            assert np.abs(one.pixels.astype(int) - other).mean() < 30 or one.number


def test_broken_videos_are_named_after_what_could_be_read(tmp_path: Path) -> None:
    data = encode(tmp_path / "a.mp4").read_bytes()
    path = tmp_path / "b.mp4"
    path.write_bytes(data[: len(data) // 2])  # the index is at the end
    with pytest.raises(InputError, match=r"b\.mp4: is a video that cannot be opened \(Invalid"):
        list(frames(path))
    times = [40 * n for n in range(60)]
    data = encode(tmp_path / "f.mp4", times, options={"movflags": "faststart"}).read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    read: list[Frame] = []
    with pytest.raises(InputError, match=r"b\.mp4: is (cut off|damaged)"):
        read.extend(_noting(path, read))
    assert 10 < len(read) < 60
    assert [one.time for one in read] == pytest.approx([n / 25 for n in range(len(read))])
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        out.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.rate = 8000
        out.mux(out.streams[0].encode(sound))
        out.mux(out.streams[0].encode(None))
    with pytest.raises(InputError, match=r"sound\.mp4: has no video stream"):
        list(frames(tmp_path / "sound.mp4"))
    with pytest.raises(InputError, match=r"none\.mp4: cannot be read: No such file"):
        list(frames(tmp_path / "none.mp4"))


def _noting(path: Path, read: list[Frame]) -> list[Frame]:
    for one in frames(path):
        read.append(one)
    return []


def one_box(number: int, size: tuple[int, int]) -> Detections:
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[2:9, 3 : 5 + number % 8] = 1
    return Detections(
        boxes=torch.tensor([[3.0, 2.0, 5.0 + number % 8, 9.0]]),
        labels=torch.tensor([1]),
        scores=torch.tensor([0.75]),
        rles=[masks.encode(mask)],
    )


def writer(out: Path, **how: Any) -> VideoWriter:
    categories = [{"id": 3, "name": "disc"}, {"id": 7, "name": "star"}]
    how = {"as_json": True, "draw_from": 0.5} | how
    return VideoWriter(out, "clip", "in/clip.mp4", categories, ["disc", "star"], **how)


@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_what_is_written_of_a_video(size: tuple[int, int], tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        for number, time in enumerate(TIMES):
            out.add(Frame(number, time / 1000, picture(number, size)), one_box(number, size))
    assert (out.frames, out.instances, out.drawn) == (8, 8, 8)
    told = json.loads((tmp_path / "videos" / "clip.json").read_text())
    assert (told["video"], told["width"], told["height"]) == ("in/clip.mp4", *size)
    assert [one["frame"] for one in told["frames"]] == list(range(8))
    assert [one["time"] for one in told["frames"]] == [time / 1000 for time in TIMES]
    for one in told["frames"]:
        (found,) = one["detections"]
        assert found["category_id"] == 7 and found["category_name"] == "star"
        assert found["score"] == 0.75 and "image_id" not in found
        assert found["segmentation"]["size"] == list(size[::-1])
        assert found["bbox"] == [3, 2, 2 + one["frame"] % 8, 7]
    drawn = by_opencv(tmp_path / "videos" / "clip.mp4")
    assert [time for time, _ in drawn] == pytest.approx([time / 1000 for time in TIMES], abs=1e-3)
    for number, (_, pixels) in enumerate(drawn):
        assert pixels.shape == (48, 64, 3)
        assert np.abs(pixels[24:].astype(int) - picture(number)[24:]).mean() < 12
    assert {one.name for one in (tmp_path / "videos").iterdir()} == {"clip.json", "clip.mp4"}


def test_what_was_found_before_an_interruption_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writer(tmp_path) as out:
        for number in range(3):
            out.add(Frame(number, number / 25, picture(number)), one_box(number, (64, 48)))
        raise KeyboardInterrupt
    told = json.loads((tmp_path / "videos" / "clip.json").read_text())
    assert len(told["frames"]) == 3 == len(by_opencv(tmp_path / "videos" / "clip.mp4"))
    assert len(list((tmp_path / "videos").iterdir())) == 2
    with writer(tmp_path / "none") as out:
        pass
    assert not (tmp_path / "none").exists()


def test_a_long_video_takes_no_more_memory(tmp_path: Path) -> None:
    """400 frames of 160 x 120 would be 23 MB; what the codecs themselves hold is there early."""
    path = encode(tmp_path / "a.mp4", [40 * n for n in range(400)], "mpeg4", (160, 120))
    peaks = []
    with writer(tmp_path) as out:
        for one in frames(path):
            if one.number % 4 == 0:
                out.add(one, one_box(one.number, (160, 120)))
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert len(peaks) == 400
    assert peaks[-1] - peaks[250] < 5_000, "KB"
