"""JPEGs, nearly all images of data sets, by simplejpeg alone.

PIL is not imported here: that takes a tenth of the start of ``autotimm-shard``.
"""

from __future__ import annotations

import numpy as np
import simplejpeg

from autotimm.images import buffers
from autotimm.images.orientation import Bytes

LARGEST = 2 * (2**30 // 4 // 3)
"""Pixels of an image; PIL refuses what has more, of any format."""

_BEGIN, _END = b"\xff\xd8\xff", b"\xff\xd9"
_NEAR = 64  # bytes: an end marker this near the file's end is the picture's, not a thumbnail's
_SPACES = ("YCbCr", "Gray", "RGB")  # colour spaces that simplejpeg turns into RGB


def ends(data: Bytes) -> bool:
    """Whether there is an end-of-image marker at a JPEG's end."""
    return _END in bytes(data[-_NEAR:])


def whole_size(data: Bytes) -> tuple[int, int] | None:
    """The stored (width, height) of a JPEG that has its end-of-image marker.

    None if it has none, if it is none that simplejpeg takes, and if it has more than ``LARGEST``
    pixels.
    """
    if bytes(data[:3]) != _BEGIN or not ends(data):
        return None
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
    except ValueError:
        return None  # PIL reads a few kinds of JPEG that libjpeg-turbo does not
    return (width, height) if width * height <= LARGEST else None


def pixels(data: Bytes, size: tuple[int, int] | None = None) -> np.ndarray | None:
    """The stored pixels of a JPEG, [height, width, 3] uint8.

    None if it is not one that simplejpeg takes, and if its (width, height) is not ``size``.
    """
    if bytes(data[:3]) != _BEGIN:
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        fits = width * height <= LARGEST if size is None else size == (width, height)
        if fits and space in _SPACES:
            found = buffers.empty((height, width, 3))
            simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=found)
            return found
    except ValueError:
        pass  # some flaw, which PIL either copes with or reports
    return None
