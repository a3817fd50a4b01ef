"""The orientation that an image file carries: which way up its stored pixels are to be shown.

Read from the bytes of JPEG (EXIF), PNG (eXIf), WebP (EXIF) and TIFF (tag 274), and where none of
these is there from XMP, as PIL does. PIL's own reading is not used: which files it turns by itself
while it loads them, and which size it gives before that, has changed from release to release.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import numpy as np

_TAG, _XMP_TAG = 0x0112, 700  # TIFF 6.0, section 8; XMP specification, part 3
_XMP = rb'tiff:Orientation(?:="|>)([1-8])'
_WHOLE = {3: "H", 4: "I", 8: "h", 9: "i"}  # types that PIL, too, takes an orientation of
_MOST = 2000  # entries of an IFD that are looked at
_ENTRY = {42: ("H", "I", 12, 8), 43: ("Q", "Q", 20, 16)}  # magic: count, offset, sizes

Bytes = bytes | memoryview


def orientation(data: Bytes) -> int:
    """Returns the orientation of an image file, 1 to 8 as EXIF numbers them; 1 if it has none.

    Those from 5 on swap width and height; 2, 4, 5 and 7 mirror.
    """
    start = bytes(data[:12])
    xmp: Bytes = b""
    if start[:2] == b"\xff\xd8":
        for content in _metadata(data):
            if content[:6] == b"Exif\0\0":
                found = _in_tiff(content[6:])[0]
                if found:
                    return found
            elif bytes(content[:28]) == b"http://ns.adobe.com/xap/1.0/":
                xmp = xmp or bytes(content)
    elif start[:8] == b"\x89PNG\r\n\x1a\n" or start[8:] == b"WEBP":
        walk = _riff_chunks if start[8:] == b"WEBP" else png_chunks
        for name, content in walk(data):
            if name in (b"eXIf", b"EXIF"):
                skipped = 6 if content[:6] == b"Exif\0\0" else 0
                found = _in_tiff(content[skipped:])[0]
                if found:
                    return found
            elif name == b"XMP " or (name == b"iTXt" and content[:17] == b"XML:com.adobe.xmp"):
                xmp = xmp or bytes(content)
    elif start[:2] in (b"II", b"MM"):
        found, _, xmp = _in_tiff(data)
        if found:
            return found
    match = re.search(_XMP, xmp) if xmp else None
    return int(match[1]) if match else 1


def as_stored(data: Bytes) -> Bytes:
    """Returns a TIFF's bytes with orientation 1, so that no reader turns what is stored; the
    unchanged bytes of any other file, which no reader turns here."""
    if bytes(data[:2]) not in (b"II", b"MM"):
        return data
    found, place, xmp = _in_tiff(data)
    if found and found != 1:
        changed = bytearray(data)
        form, at = place
        changed[at : at + struct.calcsize(form)] = struct.pack(form, 1)
        return bytes(changed)
    if not found and (match := re.search(_XMP, xmp)):
        return bytes(data).replace(match[0], match[0][:-1] + b"1")
    return data


def turned(size: tuple[int, int], which: int) -> tuple[int, int]:
    """Returns the width and height of an image once it is upright."""
    return (size[1], size[0]) if which >= 5 else size


def upright(pixels: np.ndarray, which: int) -> np.ndarray:
    """Returns stored pixels [h, w, ...] as they are to be shown (EXIF 2.32, table 6)."""
    if which >= 5:
        pixels = pixels.swapaxes(0, 1)
    if which in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if which in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def png_chunks(data: Bytes) -> Iterator[tuple[bytes, Bytes]]:
    """Yields name and content of each chunk of a PNG."""
    at = 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        yield bytes(data[at + 4 : at + 8]), data[at + 8 : at + 8 + size]
        at += 12 + size


def _riff_chunks(data: Bytes) -> Iterator[tuple[bytes, Bytes]]:
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield bytes(data[at : at + 4]), data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _metadata(data: Bytes) -> Iterator[Bytes]:
    """Yields the content of each APP1 segment in front of a JPEG's tables and pixels."""
    at, last = 2, len(data) - 4
    while at <= last and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xFF:  # a fill byte
            at += 1
            continue
        if not (0xE0 <= kind <= 0xEF or kind == 0xFE):  # neither APPn nor a comment
            return
        size = data[at + 2] << 8 | data[at + 3]
        if kind == 0xE1:
            yield data[at + 4 : at + 2 + size]
        at += 2 + max(size, 2)


def _in_tiff(data: Bytes) -> tuple[int, tuple[str, int], Bytes]:
    """Returns the orientation in a TIFF's first IFD (0: none), its form and place, and the XMP."""
    found, place = 0, ("", 0)
    xmp: Bytes = b""
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    try:
        if order is None:
            return found, place, xmp
        magic = struct.unpack_from(f"{order}H", data, 2)[0]
        counts, offsets, size, first = _ENTRY[magic]
        ifd = struct.unpack_from(f"{order}{offsets}", data, first - struct.calcsize(offsets))[0]
        entries = struct.unpack_from(f"{order}{counts}", data, ifd)[0]
        at = ifd + struct.calcsize(counts)
        for _ in range(min(entries, _MOST)):
            tag, kind, count = struct.unpack_from(f"{order}HH{offsets}", data, at)
            value = at + size - struct.calcsize(offsets)
            if tag == _TAG and kind in _WHOLE:
                form = order + _WHOLE[kind]
                number = struct.unpack_from(form, data, value)[0]
                if 1 <= number <= 8 and not found:
                    found, place = number, (form, value)
            elif tag == _XMP_TAG:
                begin = struct.unpack_from(f"{order}{offsets}", data, value)[0]
                xmp = data[begin : begin + count]
            at += size
    except (struct.error, KeyError, OverflowError):
        pass  # metadata that cannot be read turn nothing
    return found, place, xmp
