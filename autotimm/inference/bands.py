"""Decodes an image from top to bottom in bands of rows, so that it need not fit into memory.

A PNG and a TIFF are cut into parts, and each part is handed to PIL as a small file of its own. Of a
PNG the filters refer to the row above: a part begins with the last row of the one before, stored
unfiltered. Of a TIFF strips and tiles are compressed one by one. Other files, also interlaced PNGs
and those of 16 bits, are decoded as a whole, 3 or 4 bytes a pixel.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import simplejpeg
from PIL import Image

from autotimm.files.units import byte_text
from autotimm.images.decode import rgb
from autotimm.images.orientation import as_stored
from autotimm.structures import InputError

WAY_OUT = (
    "save it as TIFF of small tiles, which are read one by one "
    "(vips copy IN OUT.tif[tile,compression=deflate,bigtiff])"
)
_BAND = 1 << 22  # pixels
_EIGHT_BITS = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"}
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types

# TIFF tags that say how pixels are stored (TIFF 6.0, and its supplement for JPEG).
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _SAMPLES, _PLANAR = 256, 257, 258, 259, 277, 284
_STRIPS = (273, 278, 279)  # offsets, rows of each, byte counts
_TILES = (324, 323, 325)
_KEPT = frozenset((_BITS, _COMPRESSION, 262, 266, _SAMPLES, _PLANAR, 292, 293, 317, 320)) | {
    *(322, 323, 332, 338, 339, 347, 529, 530, 531, 532)
}
_OLD_JPEG = 6  # a compression whose strips cannot be read alone


def bands(file: BinaryIO, header: Any, which: int = 1) -> Iterator[np.ndarray]:
    """Yields the rows of an image, some at a time, as [h, W, 3] uint8 RGB; not turned upright.

    Args:
        file: of the image; it can be sought in.
        header: the same image as PIL has opened it, not loaded.
        which: the orientation that the file carries.

    Raises:
        InputError: it has more than 8 bits a channel, or does not fit into memory where it must.
        OSError, ValueError, zlib.error and what else PIL raises: it is broken.
    """
    if header.mode not in _EIGHT_BITS:
        raise InputError(
            f"has more than 8 bits a channel ({header.mode}), which are not read in parts: convert "
            "it to 8 bits"
        )
    parts = None
    if header.format == "PNG":
        parts = _png_bands(file)
    elif header.format == "TIFF":
        parts = _tiff_bands(file, header.tag_v2)
    return parts or _whole(file, header, which)


def _rows(image: Image.Image, width: int, first: int = 0) -> Iterator[np.ndarray]:
    """The rows of a loaded image from ``first`` on, each up to ``width``."""
    step = max(_BAND // width, 1)
    for top in range(first, image.height, step):
        yield rgb(image.crop((0, top, width, min(top + step, image.height))))


def _whole(file: BinaryIO, header: Any, which: int) -> Iterator[np.ndarray]:
    jpeg = header.format in ("JPEG", "MPO") and header.mode in ("L", "RGB")
    needed = (3 if jpeg else 4) * header.width * header.height
    free = _free_memory()
    if free is not None and needed > free:
        raise InputError(
            f"takes {byte_text(needed)} of memory, as this kind of {header.format} is decoded as a "
            f"whole, and {byte_text(free)} are free: {WAY_OUT}"
        )
    if jpeg:
        file.seek(0)
        pixels = simplejpeg.decode_jpeg(file.read(), colorspace="RGB")
        step = max(_BAND // header.width, 1)
        for top in range(0, len(pixels), step):
            yield pixels[top : top + step]
        return
    if header.format == "TIFF" and which != 1:  # PIL would turn it while it loads it
        file.seek(0)
        header = type(header)(io.BytesIO(as_stored(file.read())), "")
    header.load()
    yield from _rows(header, header.width)


def _free_memory() -> int | None:
    """Bytes that the system has left, where it says so."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _png_bands(file: BinaryIO) -> Iterator[np.ndarray] | None:
    """None for a PNG that cannot be cut: interlaced, or of 16 bits, which PIL makes 8."""
    file.seek(8)
    chunks = _png_chunks(file)
    kind, shape = next(chunks)
    if kind != b"IHDR" or len(shape) != 13:
        raise ValueError("PNG without its IHDR")
    width, height, depth, colour, *_, interlaced = struct.unpack(">IIBBBBB", shape)
    if interlaced or depth == 16 or colour not in _CHANNELS:
        return None
    return _cut_png(chunks, width, height, depth, colour)


def _cut_png(
    chunks: Iterator[tuple[bytes, bytes]], width: int, height: int, depth: int, colour: int
) -> Iterator[np.ndarray]:
    row = 1 + -(-width * _CHANNELS[colour] * depth // 8)  # bytes, the filter's number first
    # What fills a row's last byte may be anything, and filters add it: it counts as pixels here.
    filled = width if depth == 8 else (row - 1) * 8 // depth
    step, done = max(_BAND // width, 1), 0
    inflate, waiting, head, above = zlib.decompressobj(), bytearray(), b"", b""
    for kind, content in chunks:
        if kind in (b"PLTE", b"tRNS"):
            head += _png_chunk(kind, content)
        if kind != b"IDAT":
            continue
        while content:
            waiting += inflate.decompress(content, row * step)
            content = inflate.unconsumed_tail
            while done < height and len(waiting) >= row * min(step, height - done):
                count = min(step, height - done)
                rows = above + bytes(waiting[: row * count])
                del waiting[: row * count]
                shape = (filled, len(rows) // row, depth, colour, 0, 0, 0)
                small = b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", struct.pack(">IIBBBBB", *shape))
                small += head + _png_chunk(b"IDAT", zlib.compress(rows, 0)) + _png_chunk(b"IEND")
                with Image.open(io.BytesIO(small), formats=("PNG",)) as image:
                    image.load()
                    yield from _rows(image, width, first=1 if above else 0)
                    above = b"\0" + _stored(image, depth, colour)
                done += count
        if done == height:
            return
    raise ValueError("image cut off or broken")


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk; of a large one, several parts."""
    while len(head := file.read(8)) == 8:
        left, kind = struct.unpack(">I4s", head)
        while True:
            part = file.read(min(left, 1 << 20) if kind == b"IDAT" else left)
            left -= len(part)
            yield kind, part
            if not left or not part:
                break
        file.read(4)  # the checksum


def _png_chunk(kind: bytes, content: bytes = b"") -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def _stored(image: Image.Image, depth: int, colour: int) -> bytes:
    """The last row of a PNG as it is stored, unfiltered."""
    last = image.crop((0, image.height - 1, image.width, image.height))
    samples = np.asarray(last).reshape(-1).astype(np.uint8)
    if depth == 8:
        return samples.tobytes()
    if colour == 0 and depth > 1:  # PIL has spread 2 or 4 bits of grey over 8
        samples //= 255 // (2**depth - 1)
    bits = samples[:, None] >> np.arange(depth - 1, -1, -1, dtype=np.uint8) & 1
    return np.packbits(bits.reshape(-1)).tobytes()


def _tiff_bands(file: BinaryIO, tags: Any) -> Iterator[np.ndarray] | None:
    """None for a TIFF that cannot be cut: of one compressed strip, of planes, of an old kind."""
    places, rows, counts = _TILES if _TILES[0] in tags else _STRIPS
    height, compression = tags[_LENGTH], tags.get(_COMPRESSION, 1)
    if places not in tags or counts not in tags:
        return None
    across = -(-tags[_WIDTH] // tags[322]) if places == _TILES[0] else 1
    unit = min(tags.get(rows, height), height)
    offsets, sizes = list(tags[places]), list(tags[counts])
    if places == _STRIPS[0] and compression == 1:
        return _cut_tiff(file, tags, *_plain_strips(tags, offsets, unit), across, places, counts)
    if tags.get(_PLANAR, 1) != 1 or compression == _OLD_JPEG or unit * tags[_WIDTH] > 4 * _BAND:
        return None
    return _cut_tiff(file, tags, offsets, sizes, unit, across, places, counts)


def _plain_strips(tags: Any, offsets: list[int], unit: int) -> tuple[list[int], list[int], int]:
    """Strips of one row each, for pixels that are not compressed: offsets, byte counts and rows."""
    bits = tags.get(_BITS, (1,))
    row = -(-tags[_WIDTH] * tags.get(_SAMPLES, 1) * bits[0] // 8)
    height = tags[_LENGTH]
    starts = [offsets[y // unit] + row * (y % unit) for y in range(height)]
    return starts, [row] * height, 1


def _cut_tiff(
    file: BinaryIO,
    tags: Any,
    offsets: list[int],
    sizes: list[int],
    unit: int,
    across: int,
    places: int,
    counts: int,
) -> Iterator[np.ndarray]:
    """Some rows of strips or tiles at a time, each as a TIFF of its own."""
    width, height = tags[_WIDTH], tags[_LENGTH]
    step = max(_BAND // (unit * width), 1)
    kept = {tag: tags[tag] for tag in _KEPT if tag in tags and tag not in (places, counts)}
    for first in range(0, -(-height // unit), step):
        here = slice(first * across, (first + step) * across)
        content = []
        for start, size in zip(offsets[here], sizes[here], strict=True):
            file.seek(start)
            content.append(file.read(size))
        rows = min((first + step) * unit, height) - first * unit
        own = {**kept, _WIDTH: width, _LENGTH: rows}
        if places == _STRIPS[0]:
            own[_STRIPS[1]] = unit
        small = _tiff(tags.prefix, own, places, counts, content)
        with Image.open(io.BytesIO(small), formats=("TIFF",)) as image:
            image.load()
            yield from _rows(image, width)


def _tiff(
    prefix: bytes, tags: dict[int, Any], places: int, counts: int, content: list[bytes]
) -> bytes:
    """A TIFF of these tags, whose strips or tiles have this content."""
    order = "<" if prefix == b"II" else ">"
    tags = {**tags, counts: tuple(map(len, content)), places: (0,) * len(content)}
    entries, rest = b"", b""
    body = 8 + 2 + 12 * len(tags) + 4  # where what does not fit into an entry begins
    values = {tag: _tiff_value(order, value, tag == places) for tag, value in tags.items()}
    start = body + sum(len(v[2]) + len(v[2]) % 2 for v in values.values() if len(v[2]) > 4)
    starts = np.cumsum([start, *map(len, content[:-1])]).tolist()
    values[places] = _tiff_value(order, starts, True)
    for tag, (kind, count, packed) in sorted(values.items()):
        where = packed.ljust(4, b"\0")
        if len(packed) > 4:
            where = struct.pack(f"{order}I", body + len(rest))
            rest += packed + b"\0" * (len(packed) % 2)
        entries += struct.pack(f"{order}HHI", tag, kind, count) + where
    head = prefix + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return head + entries + b"\0\0\0\0" + rest + b"".join(content)


def _tiff_value(order: str, value: Any, long: bool) -> tuple[int, int, bytes]:
    """TIFF's type, count and bytes of a tag's value."""
    if isinstance(value, bytes):
        return 7, len(value), value
    several = list(value) if isinstance(value, tuple | list) else [value]
    if all(isinstance(one, int) for one in several):
        kind, letter = (4, "I") if long or max(several) > 65535 else (3, "H")
        return kind, len(several), struct.pack(f"{order}{len(several)}{letter}", *several)
    parts = [Fraction(float(one)).limit_denominator(10**6) for one in several]
    flat = [part for one in parts for part in (one.numerator, one.denominator)]
    return 5, len(several), struct.pack(f"{order}{len(flat)}I", *flat)
