"""Image files, undecoded: which format and size, is it whole.

Only formats that need no outside program are opened (PIL would hand an EPS to Ghostscript). Sizes
are width, height in pixels.
"""

from __future__ import annotations

import struct
from io import BytesIO

import simplejpeg
from PIL import Image, TiffImagePlugin, WebPImagePlugin

from autotimm.images.orientation import as_stored, orientation, turned
from autotimm.images.quiet import quiet

EXTENSIONS = {
    "BMP": "bmp",
    "GIF": "gif",
    "JPEG": "jpg",
    "MPO": "jpg",  # a JPEG with more pictures behind the first
    "PNG": "png",
    "PPM": "ppm",
    TiffImagePlugin.TiffImageFile.format: "tif",  # known to PIL only once its module is imported
    WebPImagePlugin.WebPImageFile.format: "webp",
}
"""The image formats that are read, as PIL names them, and the extensions they get."""

FORMATS = tuple(name for name in EXTENSIONS if name != "MPO")
"""What to let PIL try, as ``Image.open(..., formats=FORMATS)``; its JPEG reader finds an MPO."""

_END = 64  # bytes: an end marker this near the file's end is the picture's, not a thumbnail's
LARGEST = 2 * (Image.MAX_IMAGE_PIXELS or 2**27)
"""Pixels of an image; PIL refuses what has more."""
# What PIL's readers raise when they trip over a broken file.
BROKEN = (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error)


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
            image = Image.open(BytesIO(as_stored(data)), formats=FORMATS)
        except Image.DecompressionBombError:
            raise ValueError("image too large") from None
        except BROKEN:  # UnidentifiedImageError is an OSError
            raise ValueError("image cannot be opened") from None
        kind, size = image.format or "", image.size
        mark = b"\xff\xd9" if EXTENSIONS[kind] == "jpg" else b"IEND" if kind == "PNG" else None
        try:
            if mark is None or mark not in end:
                image.load()
        except (*BROKEN, Image.DecompressionBombError):
            raise ValueError("image cut off or broken") from None
        if image.mode in ("P", "PA") and image.palette is None:
            raise ValueError("image without the palette that its pixels are of")
    return EXTENSIONS[kind], size


def shown_size(data: bytes | memoryview) -> tuple[int, int]:
    """Returns (width, height) as viewers show an image, upright.

    Raises:
        ValueError, OSError: it is no image that can be read.
    """
    with quiet, Image.open(BytesIO(as_stored(data)), formats=FORMATS) as image:
        return turned(image.size, orientation(data))
