"""Reads the frames of a video one by one, upright, each with its time.

PyAV (BSD; FFmpeg's libraries) rather than OpenCV: it says when each frame is shown and where a file
is damaged, where OpenCV ends as if the video did. FFmpeg gets an open file and no name, so that no
file can make it open another one or a URL. Few frames are in memory at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from autotimm.structures import InputError


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of a video.

    Attributes:
        number: from 0, counting also those that were left out.
        time: when it is shown, in seconds from the beginning of the video.
        pixels: [H, W, 3] uint8 RGB, upright.
    """

    number: int
    time: float
    pixels: np.ndarray


def pyav() -> ModuleType:
    """PyAV; InputError with the way out where it is missing."""
    try:
        import av
    except ImportError as error:
        raise InputError("videos need PyAV: pip install av") from error
    return av


def frames(path: str | os.PathLike[str], every: int = 1) -> Iterator[Frame]:
    """Yields the frames of a local video.

    Args:
        path: of any container and codec that PyAV's FFmpeg has.
        every: yields the frames 0, ``every``, 2 * ``every``, ...

    Raises:
        InputError: it cannot be opened, or a part of it is damaged; then only after all frames that
            could be decoded. The message names the file.
    """
    av = pyav()
    path = Path(path)
    number, damaged = 0, 0
    try:
        with path.open("rb") as file, av.open(file, metadata_errors="replace") as container:
            if not container.streams.video:
                raise InputError(f"{path}: has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            clock = _Clock(stream)
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets, None)
                    if packet is None:
                        break
                    decoded = packet.decode()
                except av.error.InvalidDataError:  # the decoder goes on with the next packet
                    damaged += 1
                    if packet is None:
                        break
                    continue
                for one in decoded:
                    time = clock.seconds(one)
                    if number % every == 0:
                        yield Frame(number, time, upright(one))
                    number += 1
            announced = stream.frames
    except av.error.FFmpegError as error:
        raise InputError(f"{path}: {_broken(error.strerror, number)}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not number:
        raise InputError(f"{path}: no frame of it can be decoded: it is damaged or empty")
    if damaged:
        raise InputError(f"{path}: is damaged: {number:,} frames could be read, others not")
    if number < announced * 0.95:  # some writers count a few frames that no player shows
        raise InputError(f"{path}: is cut off: {number:,} of its {announced:,} frames are there")


def _broken(reason: str, read: int) -> str:
    if read:
        return f"is damaged after frame {read - 1:,} ({reason}): what comes before was used"
    return f"is a video that cannot be opened ({reason}): it is damaged or cut off"


class _Clock:
    """Computes when frames are shown; by the frame rate if the file does not say it."""

    def __init__(self, stream: Any) -> None:
        self._start = stream.start_time or 0
        self._unit = stream.time_base
        self._step = float(1 / stream.average_rate) if stream.average_rate else 0.0
        self._last = -self._step

    def seconds(self, frame: Any) -> float:
        known = frame.pts is not None and self._unit is not None
        time = float((frame.pts - self._start) * self._unit) if known else self._last + self._step
        self._last = max(time, 0.0)
        return self._last


def upright(frame: Any) -> np.ndarray:
    """The pixels [H, W, 3] uint8 RGB of a PyAV frame, turned as its display matrix says.

    The matrix has 3 x 3 numbers of 16.16 fixed point; a point's row (x, y, 1) times it is where the
    point is shown (ISO/IEC 14496-12, 6.2.2). Phones write quarter turns and mirror images.
    """
    pixels = frame.to_ndarray(format="rgb24")
    stored = frame.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return pixels
    (xx, xy), (yx, yy) = np.frombuffer(bytes(stored), np.int32).reshape(3, 3)[:2, :2].tolist()
    if abs(xx) + abs(yy) < abs(xy) + abs(yx):  # what went right goes down
        pixels = pixels.transpose(1, 0, 2)
        xx, yy = yx, xy
    return np.ascontiguousarray(pixels[:: -1 if yy < 0 else 1, :: -1 if xx < 0 else 1])
