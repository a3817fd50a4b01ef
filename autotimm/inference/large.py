"""Images of more pixels than are decoded at once: their tiles, and a smaller picture of them."""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image

from autotimm.coco import masks
from autotimm.images.jpeg import LARGEST
from autotimm.images.kinds import HEAD, kind_of
from autotimm.images.opening import BROKEN
from autotimm.images.orientation import orientation, turned, upright
from autotimm.images.quiet import quiet
from autotimm.inference.bands import WAY_OUT, bands
from autotimm.inference.tiles import Window, tile_windows
from autotimm.structures import RLE, Detections, InputError

_MOST = 2**32 - 1  # pixels; an RLE has them in 32 bits
_PNG = b"\x89PNG\r\n\x1a\n"
_LONGEST = 4096  # pixels, of the smaller picture's longer side


class LargeImage:
    """An image that is read tile by tile.

    Attributes:
        name: of the file, for messages.
        shape: height and width as viewers show it, and 3.
        factor: how many times smaller ``reduced`` is.
        reduced: [h, w, 3] uint8 RGB; there once all tiles were read.
    """

    def __init__(self, source: Path | bytes, header: Any, name: str) -> None:
        self._source, self.name, self._format = source, name, header.format
        if header.format == "TIFF":  # PIL exchanges the sides of some that are to be turned
            self._width, self._height = header.tag_v2[256], header.tag_v2[257]
        else:
            self._width, self._height = header.size
        self._which = _orientation(source)
        sides = (self._height, self._width)
        self.shape = (*turned(sides, self._which), 3)
        self.factor = -(-max(sides) // _LONGEST)
        self.reduced = np.zeros((0, 0, 3), np.uint8)

    def tiles(self, side: int, overlap: float) -> Iterator[tuple[Window, np.ndarray]]:
        """Yields the tiles of ``tile_windows``, each with its pixels [h, w, 3] uint8 RGB.

        The image is decoded once, from top to bottom, and as many of its rows are in memory as a
        tile has, and some more.

        Raises:
            InputError: it is broken, or cannot be read in parts.
        """
        windows = tile_windows(self._height, self._width, side, overlap)
        small: list[np.ndarray] = []
        try:
            with quiet, _opened(self._source) as file, _header(file) as header:
                rows = _reducing(bands(file, header, self._which), self.factor, small)
                for window, pixels in _cut(rows, windows):
                    yield self._upright_window(window), upright(pixels, self._which)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from error
        except Image.DecompressionBombError as error:
            raise InputError(
                f"{self.name}: this kind of {self._format} is decoded in parts of more than "
                f"{LARGEST:,} pixels, which is refused: {WAY_OUT}"
            ) from error
        except BROKEN as error:
            reason = str(error).split("\n")[0] or type(error).__name__
            raise InputError(f"{self.name}: the image cannot be decoded ({reason})") from error
        self.reduced = upright(np.concatenate(small), self._which)

    def _upright_window(self, window: Window) -> Window:
        """Where the pixels of a stored window lie once ``upright`` has turned them."""
        y1, x1, y2, x2 = window
        height, width = self.shape[:2]
        if self._which >= 5:
            y1, x1, y2, x2 = x1, y1, x2, y2
        if self._which in (2, 3, 6, 7):
            x1, x2 = width - x2, width - x1
        if self._which in (3, 4, 7, 8):
            y1, y2 = height - y2, height - y1
        return y1, x1, y2, x2

    def shrunk(self, found: Detections) -> Detections:
        """What was found in the image, in the pixels of ``reduced``."""
        shrunk: Any = {**found, "boxes": found["boxes"] / self.factor}
        if "rles" in found:
            size = self.reduced.shape[:2]
            shrunk["rles"] = [_shrunk(rle, self.factor, *size) for rle in found["rles"]]
        return shrunk


def pixel_count(source: Path | bytes) -> int:
    """The pixels of an image by its header; 0 for what is no image, or a broken one.

    Args:
        source: its file, or that file's content.
    """
    try:
        with quiet, _opened(source) as file, _header(file) as header:
            return header.width * header.height
    except (*BROKEN, Image.DecompressionBombError):
        return 0  # the reader says what is wrong


def large_image(source: Path | bytes, name: str) -> LargeImage | None:
    """An image of more pixels than ``LARGEST``; None for others, and for what is no image.

    Args:
        source: its file, or that file's content.
        name: of the file, for messages.

    Raises:
        InputError: it has more pixels than masks can have; the message does not name it.
    """
    try:
        with quiet, _opened(source) as file, _header(file) as header:
            width, height = header.size
            if width * height <= LARGEST:
                return None
            if width * height > _MOST:
                raise InputError(
                    f"has {width:,} x {height:,} pixels, but a mask has {_MOST:,} at most: cut it"
                )
            return LargeImage(source, header, name)
    except InputError:
        raise
    except (*BROKEN, Image.DecompressionBombError):
        return None  # the ordinary reader says what is wrong


def _opened(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _orientation(source: Path | bytes) -> int:
    """The orientation that the file carries; of a large file little is read."""
    if isinstance(source, bytes):
        return orientation(source)
    with source.open("rb") as file:
        if file.read(8) == _PNG:  # mapped, all of it would come into memory, chunk by chunk
            return orientation(_PNG + _metadata(file))
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as data,
        ):
            return orientation(data)


def _metadata(file: BinaryIO) -> bytes:
    """The chunks of a PNG, read behind its signature, that may hold its orientation."""
    found, at = b"", len(_PNG)
    while len(head := file.read(8)) == 8:
        size = 12 + int.from_bytes(head[:4], "big")
        if head[4:] in (b"eXIf", b"iTXt"):
            found += head + file.read(size - 8)
        at = file.seek(at + size)
    return found


def _header(file: BinaryIO) -> Any:
    """The image as PIL opens it, without the limit that ``Image.open`` has; not loaded."""
    kind = kind_of(file.read(HEAD))
    file.seek(0)
    Image.preinit()
    return Image.OPEN[kind.name.upper()][0](file, "")


def _cut(rows: Iterator[np.ndarray], windows: list[Window]) -> Iterator[tuple[Window, np.ndarray]]:
    """The windows' pixels, of an image that comes in bands; windows go from top to bottom."""
    held, top = next(rows), 0
    for window in windows:
        y1, x1, y2, x2 = window
        if y1 > top:
            held, top = held[y1 - top :], y1
        parts, end = [held], top + len(held)
        while end < y2:
            parts.append(next(rows, held[:0]))
            if not len(parts[-1]):
                raise ValueError("image cut off or broken")
            end += len(parts[-1])
        if len(parts) > 1:
            held = np.concatenate(parts)
        yield window, held[y1 - top : y2 - top, x1:x2]


def _reducing(
    rows: Iterator[np.ndarray], factor: int, small: list[np.ndarray]
) -> Iterator[np.ndarray]:
    """Passes the bands on, and appends each to ``small``, ``factor`` times smaller.

    What is left of the last row and column of cells is dropped.
    """
    waiting: np.ndarray | None = None
    for band in rows:
        joined = band if waiting is None else np.concatenate([waiting, band])
        height, width = len(joined) // factor, joined.shape[1] // factor
        if height and width:
            cells = np.ascontiguousarray(joined[: height * factor, : width * factor])
            small.append(cv2.resize(cells, (width, height), interpolation=cv2.INTER_AREA))
        waiting = joined[height * factor :]
        yield band


def _shrunk(rle: RLE, factor: int, height: int, width: int) -> RLE:
    """A mask of the smaller picture: what the full one says in the middle of each cell."""
    x1, y1, x2, y2 = (int(side) // factor for side in masks.box(rle))
    x2, y2 = min(x2 + 1, width), min(y2 + 1, height)
    if x1 >= x2 or y1 >= y2:
        return masks.encode_window(np.zeros((1, 1), np.bool_), 0, 0, height, width)
    rows, columns = (np.arange(a, b) * factor + factor // 2 for a, b in ((y1, y2), (x1, x2)))
    return masks.encode_window(masks.sampled(rle, rows, columns), y1, x1, height, width)
