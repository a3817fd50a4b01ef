"""Image files, undecoded: which format and size, is it whole.

Sizes are width, height in pixels.
"""

from __future__ import annotations

import simplejpeg
from PIL import Image

from autotimm.images.opening import BROKEN, EXTENSIONS, FORMATS, LARGEST, open_image, undecodable
from autotimm.images.orientation import orientation, turned
from autotimm.images.quiet import quiet

__all__ = ["BROKEN", "EXTENSIONS", "FORMATS", "LARGEST", "inspect", "shown_size"]

_END = 64  # bytes: an end marker this near the file's end is the picture's, not a thumbnail's


def inspect(data: bytes | memoryview) -> tuple[str, tuple[int, int]]:
    """Finds the format and the stored size of an image, and that it is whole.

    A JPEG with its end-of-image marker and a PNG with its IEND are taken for whole; anything else
    is decoded to decide.

    Returns:
        The extension that belongs to the format, and (width, height) as stored, before any turn.

    Raises:
        ValueError: it is no image that can be read; the message is a short reason.
    """
    start, end = bytes(data[:3]), bytes(data[-_END:])
    if start == b"\xff\xd8\xff" and b"\xff\xd9" in end:
        try:
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
            if width * height <= LARGEST:
                return "jpg", (width, height)
        except ValueError:
            pass  # PIL reads a few kinds of JPEG that libjpeg-turbo does not
    with quiet:
        try:
            image = open_image(data)
        except Image.DecompressionBombError:
            raise ValueError(
                f"image too large (over {LARGEST:,} pixels): cut it into tiles or shrink it"
            ) from None
        kind, size = image.format or "", image.size
        mark = b"\xff\xd9" if EXTENSIONS[kind] == "jpg" else b"IEND" if kind == "PNG" else None
        try:
            if mark is None or mark not in end:
                image.load()
        except (*BROKEN, Image.DecompressionBombError):
            raise ValueError(undecodable(image)) from None
        if image.mode in ("P", "PA") and image.palette is None:
            raise ValueError("image without the palette that its pixels are of")
    return EXTENSIONS[kind], size


def shown_size(data: bytes | memoryview) -> tuple[int, int]:
    """Returns (width, height) as viewers show an image, upright.

    Raises:
        ValueError, OSError: it is no image that can be read.
    """
    with quiet, open_image(data) as image:
        return turned(image.size, orientation(data))
