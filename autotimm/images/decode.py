"""Image bytes -> RGB pixels, for whatever a data set may hold.

JPEG, nearly everything there is, goes through simplejpeg; the rest, and JPEGs that simplejpeg does
not take, through those of PIL's readers that run no other program. The size is compared with the
record's before any pixel is decoded, so that no file can unfold into more memory than its record
says. Images are decoded at their full size: libjpeg's half size is up to 10 grey values, 0.4 in the
mean, off what the area average makes of the whole.

EXIF orientation: annotations are in the pixels of the image as their tool saw it, and the record's
size says which that was. COCO's own tools never turn an image: pycocotools takes sizes from the
file of annotations, torchvision's CocoDetection leaves pixels as PIL opens them. So an image whose
stored size is the record's stays as stored. Tools that show photos upright write the turned size:
such an image is turned, mirrored too if its tag says so. Where sizes cannot tell (a square, or tags
2 to 4, which keep the size), the image stays as stored, as for COCO's tools; who annotated such
photos upright has to store them upright.
"""

from __future__ import annotations

import io
import threading
import warnings

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from autotimm.images import buffers
from autotimm.images.inspect import FORMATS
from autotimm.structures import InputError

_EXIF_ORIENTATION = 0x0112
_SIMPLE = ("YCbCr", "Gray", "RGB")  # colour spaces of a JPEG that simplejpeg turns into RGB


class _Quiet:
    """Nothing warns as long as a thread is within.

    ``warnings.catch_warnings`` alone is for one thread: of two that overlap, the one that came last
    puts back what the first had set, and nothing would warn ever after.
    """

    def __init__(self) -> None:
        self._lock, self._within = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._caught = warnings.catch_warnings(action="ignore")
                self._caught.__enter__()
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                self._caught.__exit__(None, None, None)


# What PIL warns of (odd metadata, large images) does not concern the pixels or is checked.
_quiet = _Quiet()


class DataError(InputError):
    """A sample of the data set cannot be used. The message names it, and says why."""


def decode_image(data: bytes | memoryview, width: int, height: int) -> np.ndarray:
    """Decodes an image of any common format and mode.

    An alpha channel is dropped; 16-bit values keep their upper 8 bits, unless the whole image fits
    into the lower 8, as label tools write them. EXIF rotation is applied where the record's size
    asks for it, and nowhere else.

    Args:
        data: the file's bytes.
        width: of the image according to its record, in pixels.
        height: likewise.

    Returns:
        [height, width, 3] uint8, RGB.

    Raises:
        DataError: the bytes are no such image; the message is a short reason, without the name.
    """
    if bytes(data[:3]) == b"\xff\xd8\xff":
        try:
            stored_height, stored_width, space, _ = simplejpeg.decode_jpeg_header(data)
            if (stored_width, stored_height) == (width, height) and space in _SIMPLE:
                pixels = buffers.empty((height, width, 3))
                simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=pixels)
                return pixels
        except ValueError:
            pass  # some flaw, which PIL either copes with or reports
    return _decode_with_pil(data, width, height)


def _decode_with_pil(data: bytes | memoryview, width: int, height: int) -> np.ndarray:
    try:
        with _quiet, Image.open(io.BytesIO(data), formats=FORMATS) as image:
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
            rotate = image.size != (width, height) and turned
            if (image.size[::-1] if rotate else image.size) != (width, height):
                raise DataError(
                    f"the image is {image.width} x {image.height} pixels, "
                    f"its annotations say {width} x {height}"
                )
            return rgb(ImageOps.exif_transpose(image) if rotate else image)
    except DataError:
        raise
    # PIL's plug-ins raise whatever comes up while they parse a broken file.
    except Exception as error:
        reason = str(error).split("\n")[0].replace(repr(error), "") or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image of a known format"
        raise DataError(f"the image cannot be decoded ({reason})") from error


def rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an open image of any mode, [height, width, 3] uint8; DataError if it has none
    of 8 or 16 bits."""
    if image.mode == "F":
        raise DataError("the image has floating-point pixels: convert it to 8 bits a channel")
    if image.mode.startswith("I"):  # 16 bits, which some formats hand on as 32
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise DataError("the image has 32-bit pixels: convert it to 8 bits a channel")
        shift = 8 if grey.max() > 255 else 0
        return np.repeat((grey >> shift).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
