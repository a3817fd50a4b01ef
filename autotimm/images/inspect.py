"""Image files, undecoded: is the name safe and there, which format and size, is it whole.

Only formats that need no outside program are opened (PIL would hand an EPS to Ghostscript). Sizes
are width, height in pixels.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import warnings
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

import simplejpeg
from PIL import Image, TiffImagePlugin, WebPImagePlugin

from autotimm.structures import InputError

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

_MISSING = "image file missing"
_END = 64  # bytes: an end marker this near the file's end is the picture's, not a thumbnail's
_LARGEST = 2 * (Image.MAX_IMAGE_PIXELS or 2**27)  # pixels; PIL refuses what has more
# What PIL's readers raise when they trip over a broken file.
BROKEN = (OSError, SyntaxError, ValueError, IndexError, TypeError, struct.error)
# What a folder's name in an annotation file may come to: that no such folder can be there.
_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap width and height


def inspect(data: bytes | memoryview) -> tuple[str, tuple[int, int]]:
    """Finds the format and the stored size of an image, and that it is whole.

    A JPEG with its end-of-image marker and a PNG with its IEND are taken for whole; anything else
    is decoded to decide.

    Returns:
        The extension that belongs to the format, and (width, height) before any EXIF rotation.

    Raises:
        ValueError: it is no image that can be read; the message is a short reason.
    """
    start, end = bytes(data[:3]), bytes(data[-_END:])
    if start == b"\xff\xd8\xff" and b"\xff\xd9" in end:
        try:
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
            if width * height <= _LARGEST:
                return "jpg", (width, height)
        except ValueError:
            pass  # PIL reads a few kinds of JPEG that libjpeg-turbo does not
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata and large pictures are fine
        try:
            image = Image.open(BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError:
            raise ValueError("image too large") from None
        except (OSError, ValueError):  # UnidentifiedImageError is an OSError
            raise ValueError("image cannot be opened") from None
        kind, size = image.format or "", image.size
        mark = b"\xff\xd9" if EXTENSIONS[kind] == "jpg" else b"IEND" if kind == "PNG" else None
        try:
            if mark is None or mark not in end:
                image.load()
        except (*BROKEN, Image.DecompressionBombError):
            raise ValueError("image cut off or broken") from None
    return EXTENSIONS[kind], size


def shown_size(data: bytes | memoryview) -> tuple[int, int]:
    """Returns (width, height) as viewers show an image: after the EXIF rotation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            try:
                turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
            except BROKEN:
                turned = False  # EXIF that cannot be read turns nothing
    return (height, width) if turned else (width, height)


class ImageFolder:
    """The names in a folder of images, listed by directory: quicker than asking file by file."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        # folder -> file -> is it a link; None: a folder outside, a file that cannot be looked at
        self.folders: dict[str, dict[str, bool | None] | None] = {}
        # folder -> name with a small extension -> the file's name, None where there are several
        self.small: dict[str, dict[str, str | None]] = {}

    def find(self, name: str) -> tuple[str, str | None]:
        """Finds the file that an image's file name means.

        A name that is not there is read as exporters on other machines mean it: with backslashes
        between folders, with the image folder's own name in front, with an extension in capitals.

        Returns:
            The file's name in this folder, and what had to be mended in the one given, if anything.

        Raises:
            ValueError: no such file can be used; the message is a short reason.
            UnicodeEncodeError: as from ``problem``.
        """
        reason = self.problem(name)
        if reason is None:
            return name, None
        for other, mended in self._readings(name):
            if reason != _MISSING:
                break
            reason = self.problem(other)
            if reason is None:
                return other, mended
        raise ValueError(reason)

    def _readings(self, name: str) -> Iterator[tuple[str, str | None]]:
        """Yields what a name may also mean, likeliest first, and what is mended by that."""
        readings: list[tuple[str, str | None]] = []
        slashes = re.sub("^(?=[A-Za-z]:/)", "/", name.replace("\\", "/"))  # a drive: absolute
        if slashes != name:
            readings.append((slashes, "file_name has backslashes (taken for slashes)"))
        own = f"{os.path.basename(self.root)}/"  # noqa: PTH119
        if slashes.startswith(own):
            shorter = slashes.removeprefix(own)
            readings.append((shorter, "file_name has the image folder's own name (left off)"))
        yield from readings
        for other, mended in [(name, None), *readings]:
            folder, base = os.path.split(other)
            if folder not in self.small:
                self.small[folder] = _by_small_extension(self.folders.get(folder) or {})
            found = self.small[folder].get(_small_extension(base))
            if found:
                same = os.path.join(folder, found)  # noqa: PTH118
                yield same, mended or "file_name's extension is in another case (file's taken)"

    def problem(self, name: str) -> str | None:
        """Tells what is wrong with an image's file name, if anything is.

        Raises:
            UnicodeEncodeError: the locale's encoding lacks a character of it.
        """
        os.fsencode(name)
        folder, base = os.path.split(name)
        if "\0" in name:
            return "file_name holds a NUL character"
        if name.startswith("/") or ".." in name.split("/"):
            return "file_name leaves the image folder"
        if folder not in self.folders:
            self.folders[folder] = self._list(folder)
        entries = self.folders[folder]
        if entries is None:
            return "link leaves the image folder"
        if base not in entries:
            return _MISSING
        if entries[base] is None:
            return "image cannot be opened"
        if entries[base] and not self._inside(os.path.join(self.root, name)):  # noqa: PTH118
            return "link leaves the image folder"
        return None

    def _list(self, folder: str) -> dict[str, bool | None] | None:
        place = os.path.join(self.root, folder)  # noqa: PTH118
        if not self._inside(place):
            return None
        found: dict[str, bool | None] = {}
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    try:
                        if entry.is_file():
                            found[entry.name] = entry.is_symlink()
                    except OSError:  # a link to itself, one into a folder that is closed to us
                        found[entry.name] = None
        except OSError as error:
            if error.errno not in _NO_FOLDER:
                raise InputError(f"{place}: cannot be read: {error.strerror}") from None
        return found

    def _inside(self, place: str) -> bool:
        real = os.path.realpath(place)
        return real == self.root or real.startswith(self.root.rstrip("/") + "/")


def _small_extension(name: str) -> str:
    stem, extension = os.path.splitext(name)  # noqa: PTH122
    return stem + extension.lower()


def _by_small_extension(names: Iterable[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in names:
        small = _small_extension(name)
        found[small] = None if small in found else name
    return found
