"""Image bytes -> RGB pixels, for whatever a data set may hold.

JPEG, nearly everything there is, goes through simplejpeg; the rest, and JPEGs that simplejpeg does
not take, through those of PIL's readers that run no other program. The size is compared with the
record's before any pixel is decoded, so that no file can unfold into more memory than its record
says. Images are decoded at their full size: libjpeg's half size is up to 10 grey values, 0.4 in the
mean, off what the area average makes of the whole.

Images of more than 8 bits a channel: see ``depth.py``.

Orientation (``orientation.py``): annotations are in the pixels of the image as their tool saw it,
and the record's size says which that was. COCO's own tools never turn an image: pycocotools takes
sizes from the file of annotations, torchvision's CocoDetection leaves pixels as PIL opens them. So
an image whose stored size is the record's stays as stored. Tools that show photos upright write the
turned size: such an image is turned, mirrored too if its orientation says so. Where sizes cannot
tell (a square, or orientations 2 to 4, which keep the size), the image stays as stored, as for
COCO's tools, and autotimm-shard counts it; whoever annotated such photos upright has to store them
upright. Prediction, which has no record, shows every image upright, as viewers do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from autotimm.images import jpeg
from autotimm.images.depth import DataError, Deep
from autotimm.images.orientation import Bytes, orientation, turned, upright
from autotimm.images.quiet import quiet
from autotimm.structures import UPPER_BITS, PixelRange

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DataError", "decode_image", "decode_upright", "deep_pixels", "rgb"]


def decode_image(
    data: Bytes, width: int, height: int, pixel_range: PixelRange = None
) -> np.ndarray:
    """Decodes an image of any common format and mode.

    An alpha channel is dropped. The image is turned where the record's size asks for it, and
    nowhere else.

    Args:
        data: the file's bytes.
        width: of the image according to its record, in pixels.
        height: likewise.
        pixel_range: what becomes black and white in an image of more than 8 bits a channel.

    Returns:
        [height, width, 3] uint8, RGB.

    Raises:
        DataError: the bytes are no such image; the message is a short reason, without the name.
    """
    pixels = jpeg.pixels(data, (width, height))
    if pixels is not None:
        return pixels
    with _opened(data) as image:
        which = 1
        if image.size != (width, height):
            which = orientation(data)
            if which < 5 or turned(image.size, which) != (width, height):
                raise DataError(
                    f"the image is {image.width} x {image.height} pixels, "
                    f"its annotations say {width} x {height}"
                )
        return _turned_pixels(image, data, which, pixel_range)


def decode_upright(data: Bytes, pixel_range: PixelRange = None) -> np.ndarray:
    """Decodes an image that has no record, upright as viewers show it.

    Args:
        data: the file's bytes.
        pixel_range: as in :func:`decode_image`.

    Returns:
        [H, W, 3] uint8, RGB.

    Raises:
        DataError: as from :func:`decode_image`.
    """
    which = orientation(data)
    pixels = jpeg.pixels(data)
    if pixels is not None:
        return pixels if which == 1 else upright(pixels, which)
    with _opened(data) as image:
        return _turned_pixels(image, data, which, pixel_range)


def deep_pixels(data: Bytes) -> Deep | None:
    """The pixels of an image of more than 8 bits a channel; None if it has no more.

    Raises:
        DataError: as from :func:`decode_image`.
    """
    if bytes(data[:2]) == b"\xff\xd8" or (bytes(data[12:16]) == b"IHDR" and data[24] <= 8):
        return None  # most images: told without opening them
    from autotimm.images.samples import deep  # PIL: a data set of JPEGs needs none

    with _opened(data) as image:
        return deep(image, data)


def rgb(
    image: Image.Image, data: Bytes | None = None, pixel_range: PixelRange = None
) -> np.ndarray:
    """The pixels of an open image of any mode, [H, W, 3] uint8, as they are stored.

    Args:
        image: to read; PIL may decode it only now.
        data: of the image's file, if there is one.
        pixel_range: as in :func:`decode_image`.

    Raises:
        DataError: as from :meth:`autotimm.images.depth.Deep.rgb`.
    """
    from autotimm.images.banded import array_of
    from autotimm.images.samples import deep

    found = deep(image, None if pixel_range == UPPER_BITS else data)
    if found is not None:
        return found.rgb(pixel_range)
    return array_of(image, _as_rgb)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _turned_pixels(
    image: Image.Image, data: Bytes, which: int, pixel_range: PixelRange
) -> np.ndarray:
    pixels = rgb(image, data, pixel_range)
    return pixels if which == 1 else upright(pixels, which)


@contextlib.contextmanager
def _opened(data: Bytes) -> Iterator[Image.Image]:
    """An image file, opened as it is stored; whatever goes wrong with it is a DataError."""
    from autotimm.images.opening import UNKNOWN, open_image  # as above

    try:
        with quiet:
            try:
                opened = open_image(data)
            except ValueError as error:
                reason = str(error)
                if reason == UNKNOWN:
                    reason = "the image cannot be decoded (not an image of a known format)"
                raise DataError(reason) from error
            with opened as image:
                yield image
    except DataError:
        raise
    # PIL's plug-ins raise whatever comes up while they parse a broken file.
    except Exception as error:
        reason = str(error).split("\n")[0].replace(repr(error), "") or type(error).__name__
        raise DataError(f"the image cannot be decoded ({reason})") from error
