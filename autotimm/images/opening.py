"""Image files opened by PIL, undecoded; what it does not open is named, with the way out.

Only formats that need no outside program are opened (PIL would hand an EPS to Ghostscript).
"""

from __future__ import annotations

import io
import logging
import struct
import zlib
from itertools import takewhile
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin, WebPImagePlugin

from autotimm.images import jpeg
from autotimm.images.kinds import CAMERA, EMPTY, HEAD, kind_of, refusal
from autotimm.images.orientation import Bytes, as_stored, png_chunks
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

# What PIL's readers raise when they trip over a broken file.
BROKEN = (
    *(OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error),
    *(ArithmeticError, AttributeError, EOFError, RuntimeError, zlib.error),
)

# What PIL logs of a TIFF that it does not open is said in our own words.
logging.getLogger("PIL").addHandler(logging.NullHandler())

UNKNOWN = "image cannot be opened"
_EMPTY = "file is empty (0 bytes)"
_SUBFILE, _WIDTH, _LENGTH, _BITS, _COMPRESSION, _SAMPLES = 254, 256, 257, 258, 259, 277
_NO_PAGE = 1 | 4  # of the same: a smaller copy of another page, a mask of it
_PLANES, _SUB_IFDS, _FORMAT, _DNG = 284, 330, 339, 50706
_FORMATS = {2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex floats"}
_COMPRESSIONS = {
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34934: "JPEG XR",
    34892: "lossy JPEG",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_BY_CV2 = (64, 3)
"""Bits and format of a single channel that PIL does not read and OpenCV does."""


def open_image(data: Bytes) -> Image.Image:
    """Opens an image file as it is stored; nothing turns it.

    64-bit floats of one channel, which PIL does not read, come as 32-bit floats.

    Raises:
        ValueError: it is none that can be read; the message is a short reason, with the way out
            where the file is of a kind that has one.
        Image.DecompressionBombError: it has more pixels than ``jpeg.LARGEST``.
    """
    stored = as_stored(data)
    try:
        image = Image.open(io.BytesIO(stored), formats=FORMATS)
    except BROKEN as error:  # UnidentifiedImageError is an OSError
        floats = _floats(stored)
        if floats is not None:
            return floats
        raise ValueError(_reason(data)) from error
    tags: Any = getattr(image, "tag_v2", {})
    if _DNG in tags or (_whole(tags, _SUBFILE, 0) & 1 and _SUB_IFDS in tags):
        raise ValueError(f"file {refusal(CAMERA)}")  # else its thumbnail would be taken for it
    if (
        _whole(tags, _PLANES, 1) == 2
        and _whole(tags, _SAMPLES, 1) > 1
        and _whole(tags, _BITS, 1) > 8
    ):
        # PIL reads it as noise, and OpenCV returns memory that it has not filled.
        raise ValueError(_odd_tiff(f"whose {_whole(tags, _BITS, 1)}-bit channels are planes apart"))
    return image


def inspect_opened(data: Bytes) -> tuple[str, tuple[int, int]]:
    """Does what :func:`autotimm.images.inspect.inspect` does, for any format; PIL may warn."""
    try:
        image = open_image(data)
    except Image.DecompressionBombError:
        raise ValueError(
            f"image too large (over {jpeg.LARGEST:,} pixels): cut it into tiles or shrink it"
        ) from None
    kind, size = image.format or "", image.size
    extension = EXTENSIONS[kind]
    whole = jpeg.ends(data) if extension == "jpg" else kind == "PNG" and b"IEND" in data[-64:]
    try:
        if not whole:
            image.load()
    except (*BROKEN, Image.DecompressionBombError):
        raise ValueError(undecodable(image)) from None
    if image.mode in ("P", "PA") and image.palette is None:
        raise ValueError("image without the palette that its pixels are of")
    return extension, size


def has_pages(data: Bytes) -> bool:
    """Whether an image that can be read has more pages or frames than the one that is read.

    A TIFF's smaller copies of its first page, and masks of it, are none.
    """
    if bytes(data[12:16]) == b"IHDR":  # animated PNGs say so in front of the pixels
        names = takewhile(lambda name: name != b"IDAT", (name for name, _ in png_chunks(data)))
        return b"acTL" in names
    with quiet, open_image(data) as image:
        try:
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                for page in range(1, image.n_frames):
                    image.seek(page)
                    if not _whole(image.tag_v2, _SUBFILE, 0) & _NO_PAGE:
                        return True
                return False
            return bool(getattr(image, "is_animated", False))
        except BROKEN:
            return False  # what follows the first page is not read


def by_cv2(data: Bytes) -> np.ndarray | None:
    """The samples of an image that PIL does not read in full, as OpenCV stores them; None if it
    cannot either."""
    import cv2

    log = cv2.utils.logging
    log.setLogLevel(log.LOG_LEVEL_ERROR)  # else it warns of each odd tag of each file
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None


def undecodable(image: Image.Image) -> str:
    """Why the pixels of an open image cannot be decoded: a short reason."""
    tags: Any = getattr(image, "tag_v2", {})
    packed = _COMPRESSIONS.get(_whole(tags, _COMPRESSION, 1))
    return _odd_tiff(f"compressed by {packed}") if packed else "image cut off or broken"


def _reason(data: Bytes) -> str:
    kind = kind_of(bytes(data[:HEAD]))
    if kind.name == "TIFF" and (tags := _tags(data)):
        return _tiff_reason(tags)
    if kind is EMPTY:
        return _EMPTY
    named = kind.use != "image" and kind.name not in ("text", "unknown kind")
    return f"file {refusal(kind)}" if named else UNKNOWN


def _tiff_reason(tags: Any) -> str:
    bits, form, channels = (_whole(tags, tag, 1) for tag in (_BITS, _FORMAT, _SAMPLES))
    if packed := _COMPRESSIONS.get(_whole(tags, _COMPRESSION, 1)):
        return _odd_tiff(f"compressed by {packed}")
    if form == 1 and bits <= 16 and channels in (1, 3, 4):
        return UNKNOWN  # of a kind that is read, but broken
    kind = _FORMATS.get(form, "integers")
    several = f"{channels} channels" if channels > 1 else "one channel"
    return _odd_tiff(f"of {several} of {bits}-bit {kind}")


def _odd_tiff(what: str) -> str:
    return (
        f"file is a TIFF {what}, which is not read: save one or three of its channels with 8 or 16 "
        "bits, uncompressed or by deflate"
    )


def _whole(tags: Any, tag: int, default: int) -> int:
    """The value of a tag, the first of several; the default where that is no whole number."""
    value = tags.get(tag, default)
    if isinstance(value, tuple) and value:
        value = value[0]
    return value if isinstance(value, int) else default


def _tags(data: Bytes) -> Any:
    """The tags of a TIFF's first image; None if they cannot be read."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(bytes(data[:8]))
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        sides = tags[_WIDTH], tags[_LENGTH]
        return tags if all(isinstance(side, int) for side in sides) else None
    except BROKEN:
        return None


def _floats(data: Bytes) -> Image.Image | None:
    """A TIFF of one channel of 64-bit floats, which PIL does not read, with its tags."""
    if bytes(data[:2]) not in (b"II", b"MM") or not (tags := _tags(data)):
        return None
    bits, form, channels = (_whole(tags, tag, 1) for tag in (_BITS, _FORMAT, _SAMPLES))
    if channels != 1 or (bits, form) != _BY_CV2:
        return None
    if tags[_WIDTH] * tags[_LENGTH] > jpeg.LARGEST:
        raise Image.DecompressionBombError
    values = by_cv2(data)
    if values is None or values.shape != (tags[_LENGTH], tags[_WIDTH]):
        raise ValueError("image cut off or broken")
    values = values.astype(np.float64)
    values[np.abs(values) > np.finfo(np.float32).max] = np.nan  # no data, as some writers name it
    image: Any = Image.fromarray(values.astype(np.float32))
    image.format, image.tag_v2 = TiffImagePlugin.TiffImageFile.format, tags
    return image
