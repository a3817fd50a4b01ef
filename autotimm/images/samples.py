"""The samples of image files of more than 8 bits a channel, and what these declare of them."""

from __future__ import annotations

import re
from math import isfinite
from typing import Any

import numpy as np
from PIL import Image

from autotimm.images.banded import array_of, bands
from autotimm.images.depth import DataError, Deep
from autotimm.images.opening import by_cv2
from autotimm.images.orientation import Bytes, as_stored, png_chunks

_INVERTED, _DEPTH, _LARGEST, _FORMAT = 262, 258, (281, 341), 339  # tags of a TIFF
_NO_DATA = 42113  # GDAL_NODATA: https://gdal.org/en/stable/drivers/raster/gtiff.html


def deep(image: Image.Image, data: Bytes | None = None) -> Deep | None:
    """The pixels of an image of more than 8 bits a channel; None if it has no more.

    Args:
        image: as ``Image.open`` has opened it, of ``as_stored(data)``.
        data: of the image's file. Without it nothing is known of what the file declares, and of
            several channels of 16 bits PIL has kept the upper 8.
    """
    tags: Any = getattr(image, "tag_v2", {})
    inverted = tags.get(_INVERTED) == 0
    if image.mode == "F":
        return Deep(array_of(image), inverted=inverted, missing=_missing(tags))
    if image.mode == "L" and tags.get(_FORMAT) == (2,):  # PIL takes signed bytes for plain ones
        return Deep(array_of(image).view(np.int8), inverted=inverted, missing=_missing(tags))
    if image.mode.startswith("I"):
        values = array_of(image)
        if tags.get(_DEPTH) == (32,) and tags.get(_FORMAT, (1,)) == (1,):
            values = values.view(np.uint32)  # PIL has no such mode
        return Deep(values, _white(image, data, values), inverted, _missing(tags))
    several = image.mode in ("RGB", "RGBA", "RGBX", "LA")
    png = data is not None and image.format == "PNG" and data[24] == 16
    if data is None or not several or not (png or 16 in tags.get(_DEPTH, ())):
        return None
    found = by_cv2(as_stored(data))  # PIL reads the upper 8 bits of these only
    if found is None or found.shape[:2] != image.size[::-1] or found.dtype != np.uint16:
        raise DataError("the image has 16 bits a channel in a form that is not read: convert it")
    values = found
    if found.ndim == 3:
        for rows in bands(*found.shape[:2]):  # in place: a copy would have a gigabyte
            found[rows, :, :3] = found[rows, :, 2::-1].copy()
        values = found if found.shape[2] == 3 else np.ascontiguousarray(found[..., :3])
    return Deep(values, _white(image, data, values))


def _missing(tags: Any) -> float | None:
    """The value that GDAL's tag names for pixels without data."""
    try:
        value = float(str(tags[_NO_DATA]).strip("\0 "))
    except (KeyError, ValueError):
        return None
    return value if isfinite(value) else None  # others are no numbers anyway


def _white(image: Image.Image, data: Bytes | None, values: np.ndarray) -> int | None:
    """The largest value that the file declares, if that is less than its samples could hold."""
    tags: Any = getattr(image, "tag_v2", None)
    if tags:
        bits = tags.get(_DEPTH, (16,))[0]
        found = next((tags[tag] for tag in _LARGEST if tag in tags), None)
        most = found[0] if isinstance(found, tuple) and found else found
        # Many writers put the image's own largest value there: TIFF 6.0 calls it statistics.
        if isinstance(most, int) and 255 <= most < 2**bits - 1 and not most & (most + 1):
            return most
        return 2**bits - 1 if bits not in (16, 32) else None
    if data is None:
        return None
    if image.format == "PNG":
        for name, content in png_chunks(data):
            if name == b"sBIT" and len(content) and 8 <= (bits := max(content[:3])) < 16:
                rest = (1 << (16 - bits)) - 1
                # The specification wants values scaled to 16 bits; many writers leave them.
                plain = values.max() < 2**bits and bool((values & rest).any())
                return 2**bits - 1 if plain else 65535
    if image.format == "PPM":
        words = re.sub(rb"#[^\r\n]*", b"", bytes(data[:1024])).split()
        if len(words) > 3 and words[3].isdigit() and int(words[3]) < 65535:
            return 65535  # PIL has scaled the values to it
    return None
