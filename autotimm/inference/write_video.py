"""Writes the detections of a video's frames: JSON with times, and the video with them drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import cv2
import numpy as np
import orjson

from autotimm.evaluation.coco_eval import to_results
from autotimm.files.atomic import whole_file
from autotimm.files.shortage import reason
from autotimm.inference.video import Frame, pyav
from autotimm.inference.write import VIDEOS, as_text, drawn_over
from autotimm.structures import Detections, InputError

_CLOCK = 60_000  # ticks a second: a whole number for each usual rate, and few enough for MPEG-4


class VideoWriter:
    """Writes frames one by one, as ``videos/<stem>.json`` and ``videos/<stem>.mp4`` in a folder.

    The JSON has ``video``, ``width``, ``height``, ``categories`` and ``frames``, of which each has
    ``frame`` (its number from 0), ``time`` (seconds) and ``detections`` (as COCO's results, without
    ``image_id``). The files appear at the end of the ``with`` block, also where an exception ends
    it: what was found until then is kept. Frames are not.

    Attributes:
        frames: number of those written so far.
        instances: number of detections written so far.
        drawn: number of detections drawn so far.
    """

    def __init__(
        self,
        out: Path,
        stem: str,
        video: str,
        categories: Sequence[dict[str, Any]],
        names: Sequence[str],
        *,
        as_json: bool,
        draw_from: float | None,
    ) -> None:
        self._folder, self._stem, self._video = out / VIDEOS, stem, as_text(video)
        self._categories, self._names = categories, names
        self._as_json, self._draw_from = as_json, draw_from
        self._open = contextlib.ExitStack()
        self._json: BinaryIO | None = None
        self._drawing: _Encoder | None = None
        self.frames = self.instances = self.drawn = 0

    def __enter__(self) -> VideoWriter:
        return self

    def add(self, frame: Frame, found: Detections) -> None:
        """Writes the detections of a frame; InputError where that fails."""
        with self._naming():
            if not self.frames:
                self._begin(*frame.pixels.shape[:2])
            if self._json is not None:
                self._json.write(b",\n" if self.frames else b"\n")
                self._json.write(orjson.dumps(self._entry(frame, found)))
            if self._drawing is not None and self._draw_from is not None:
                picture, count = drawn_over(frame.pixels, found, self._draw_from, self._names)
                self._drawing.add(picture, frame.time)
                self.drawn += count
        self.frames += 1
        self.instances += len(found["scores"])

    def _begin(self, height: int, width: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._draw_from is not None:
            file = self._open.enter_context(whole_file(self._folder / f"{self._stem}.mp4"))
            self._drawing = self._open.enter_context(_Encoder(file, height, width))
        if self._as_json:
            self._json = self._open.enter_context(whole_file(self._folder / f"{self._stem}.json"))
            head = {"video": self._video, "width": width, "height": height}
            head["categories"] = list(self._categories)
            self._json.write(orjson.dumps(head)[:-1] + b',"frames":[')

    def _entry(self, frame: Frame, found: Detections) -> dict[str, Any]:
        results = to_results(found, 0, [one["id"] for one in self._categories], self._names)
        detections = [{k: v for k, v in one.items() if k != "image_id"} for one in results]
        return {"frame": frame.number, "time": round(frame.time, 6), "detections": detections}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A full disk: the error that is on its way says so.
        ignored = contextlib.suppress(InputError) if error else contextlib.nullcontext()
        with ignored, self._naming(), self._open:
            if self._json is not None:
                self._json.write(b"\n]}\n")

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = self._folder / self._stem
            raise InputError(f"cannot write {where}.*: {reason(error)}") from error


class _Encoder:
    """Encodes pictures of one size as H.264 in MP4, each shown at its own time.

    4:2:0 has one colour for 2 x 2 pixels, so that an odd side gets one more row or column, a copy
    of the last one.
    """

    def __init__(self, file: BinaryIO, height: int, width: int) -> None:
        av = pyav()
        self._frame = av.VideoFrame
        self._size = (width, height)
        self._last = -1
        self._container = av.open(file, "w", format="mp4")
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self._stream = self._container.add_stream(codec, rate=30)  # each frame has its own time
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _CLOCK)

    def __enter__(self) -> _Encoder:
        return self

    def add(self, picture: np.ndarray, time: float) -> None:
        """Encodes a picture [H, W, 3] uint8 RGB that is shown from ``time`` on, in seconds."""
        if picture.shape[1::-1] != self._size:  # a stream may change its size
            picture = cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA)
        width, height = self._size
        if width % 2 or height % 2:
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        frame = self._frame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        self._last = max(round(time * _CLOCK), self._last + 1)
        frame.pts, frame.time_base = self._last, Fraction(1, _CLOCK)
        self._container.mux(self._stream.encode(frame))

    def __exit__(self, *_: object) -> None:
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()
