"""Finds images and videos in folders, patterns and URLs; reads images from them, PIL and arrays."""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autotimm.files import remote, urls
from autotimm.files.retry import Retry
from autotimm.images import inspect, jpeg
from autotimm.images.decode import decode_upright, rgb
from autotimm.images.kinds import HEAD, Kind, kind_of, refusal
from autotimm.images.opening import BROKEN, EXTENSIONS
from autotimm.images.orientation import upright
from autotimm.images.turns import LARGE
from autotimm.inference.large import LargeImage, large_image, pixel_count
from autotimm.structures import InputError, PixelRange

SUFFIXES = frozenset(
    f".{name}"
    for name in (*EXTENSIONS.values(), "jpe", "jpeg", "jfif", "pgm", "pbm", "pnm", "tiff")
)
"""Suffixes of the files on a server that count as images: those of a folder say it themselves."""

_ORIENTATION = 0x0112  # EXIF 2.32, table 4
_VIDEO = (
    "autotimm predict takes local videos, and autotimm.inference.video.frames gives their frames"
)


def find(
    words: Iterable[str],
    skipped: Counter[str] | None = None,
    own: Callable[[Path], bool] | None = None,
) -> list[str]:
    """The files and URLs that ``words`` stand for, each once, in the order of the words.

    Args:
        words: paths of files, of folders (all images and videos in them and below, sorted),
            patterns such as ``photos/*.jpg`` or ``s3://bucket/photos/*.jpg``, or URLs. In a folder
            and for a pattern, the first bytes of a file tell what it is. A path that does not
            exist, and a folder or pattern without any image, stay as they are: reading them then
            fails with a message that names them.
        skipped: counts the files of folders and patterns that are neither, by kind; not hidden
            ones, unless they are images.
        own: whether a file or folder that was come across was written by an earlier run, and is
            left out uncounted.

    Raises:
        InputError: the store of a pattern cannot be listed.
    """
    skipped = Counter() if skipped is None else skipped
    own = own or (lambda _: False)
    found: list[str] = []
    for word in words:
        if urls.kind(word) == "file":
            word = str(urls.file_path(word))
        if urls.kind(word):
            names = _matching(word, skipped) if "*" in word else [word]
        elif Path(word).is_dir():
            names = [str(p) for p in _below(Path(word), own) if _usable(p, skipped)]
        elif glob.has_magic(word) and not Path(word).exists():
            # Path.glob takes no absolute pattern.
            paths = sorted(map(Path, glob.glob(word, recursive=True)))  # noqa: PTH207
            names = [str(p) for p in paths if not own(p) and _usable(p, skipped)]
        else:
            names = [word]
        found += names or [word]
    return list(dict.fromkeys(found))


def _below(folder: Path, own: Callable[[Path], bool]) -> list[Path]:
    """The files of a folder and of those below it that are not hidden, sorted, and the links to
    folders, which are not followed."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        at = Path(place)
        folders[:] = [one for one in folders if not one.startswith(".") and not own(at / one)]
        linked = [one for one in folders if (at / one).is_symlink()]
        found += [at / one for one in (*files, *linked) if not own(at / one)]
    return sorted(found)


def _usable(path: Path, skipped: Counter[str]) -> bool:
    """Whether this is an image or a video to look at; what is not is counted by its kind."""
    try:
        if not path.is_file():
            return _is_lost_image(path, skipped)
        kind = kind_of_file(path)
    except OSError:
        return True  # reading it fails with a message that names it
    if path.name.startswith("."):  # .DS_Store, what programs have half written
        if kind.use == "image":
            skipped["hidden image"] += 1
        return False
    if kind.use == "other" and path.suffix.lower() not in SUFFIXES:
        skipped[kind.name] += 1
        return False
    return True  # a file that has an image's extension alone is refused by name, with the way out


def _is_lost_image(path: Path, skipped: Counter[str]) -> bool:
    """Whether what is no regular file was an image, so that reading it fails by name; all else is
    counted, and never opened: a pipe may never answer."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.suffix.lower() in SUFFIXES:
            return True
        skipped["link to nothing"] += 1
        return False
    if stat.S_ISDIR(mode):
        kind = "link to a folder" if path.is_symlink() else "folder"
    else:
        known = ((stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))
        kind = next((name for is_one, name in known if is_one(mode)), "device")
    skipped[kind] += 1
    return False


def kind_of_file(path: Path) -> Kind:
    """What a local file is; OSError if it cannot be read."""
    with path.open("rb") as file:
        return kind_of(file.read(HEAD), path.name)


def is_video(name: str) -> bool:
    """Whether this is a local file that holds a video."""
    try:
        return Path(name).is_file() and kind_of_file(Path(name)).use == "video"
    except OSError:
        return False


def _matching(pattern: str, skipped: Counter[str]) -> list[str]:
    """The images on a server, by their names: the beginning of each would be a request."""
    import fsspec

    urls.locate(pattern)  # raises InputError for a kind of URL that is not supported
    kind = urls.kind(pattern)
    try:
        files = fsspec.filesystem(kind).glob(pattern)
    except Exception as error:  # each of fsspec's back ends raises its library's own errors
        reason = " ".join(str(error).split())
        raise InputError(f"{urls.shown(pattern)}: cannot be listed: {reason}") from error
    found = [file if "://" in file else f"{kind}://{file}" for file in files]
    images = sorted(one for one in found if Path(one).suffix.lower() in SUFFIXES)
    if len(found) > len(images):
        skipped["without an image's extension"] += len(found) - len(images)
    return images


def pixels_of(image: Any, pixel_range: PixelRange = None) -> np.ndarray:
    """An image as [H, W, 3] uint8 RGB, upright as viewers show it.

    For arguments and errors see :func:`image_of`; an image of too many pixels is an error too.
    """
    read = image_of(image, tiled=False, pixel_range=pixel_range)
    assert isinstance(read, np.ndarray)
    return read


def image_of(
    image: Any,
    *,
    tiled: bool,
    pixel_range: PixelRange = None,
    admit: Callable[[int], object] = lambda _: None,
) -> np.ndarray | LargeImage:
    """An image as [H, W, 3] uint8 RGB, upright as viewers show it.

    Args:
        image: a path, a URL, a PIL image, or an array [H, W], [H, W, 1], [H, W, 3] (RGB) or
            [H, W, 4], uint8.
        tiled: give a :class:`LargeImage` where a file has too many pixels to decode it at once,
            rather than refuse it.
        pixel_range: what becomes black and white in an image of more than 8 bits a channel.
        admit: called with the number of pixels before they are decoded; it may wait.

    Raises:
        InputError: it cannot be read or is no image; the message names the file.
    """
    if isinstance(image, str | os.PathLike):
        return _of_file(os.fspath(image), tiled, pixel_range, admit)
    if isinstance(image, Image.Image):
        admit(image.width * image.height)
        return _of_pil(image, pixel_range)
    return _of_array(image)


def _of_file(
    path: str, tiled: bool, pixel_range: PixelRange, admit: Callable[[int], object]
) -> np.ndarray | LargeImage:
    """See :func:`image_of`, for a path or URL."""
    name = urls.shown(path)
    try:
        source = _source(path)
        count = pixel_count(source)
        large = large_image(source, name) if count > LARGE else None
        if large is None:
            admit(count)
            data = source if isinstance(source, bytes) else source.read_bytes()
            return decoded(data, path, pixel_range)
        if tiled:
            return large
        height, width, _ = large.shape
        raise InputError(
            f"has {width:,} x {height:,} pixels, and {jpeg.LARGEST:,} are decoded at once: "
            "give --tile PIXELS (in Python tile=), and it is read in tiles"
        )
    except InputError as error:
        raise InputError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from error
    except OSError as error:
        reason = error.strerror or str(error).removeprefix(f"{name}: ")
        raise InputError(f"{name}: cannot be read: {reason}") from error


def _of_pil(image: Image.Image, pixel_range: PixelRange) -> np.ndarray:
    """See :func:`image_of`, for a PIL image."""
    try:
        image.load()  # PIL turns a TIFF here, and then no longer gives its orientation
        which = image.getexif().get(_ORIENTATION, 1)
        # Not exif_transpose: its copy lacks the tags that say what a TIFF's values mean.
        pixels = rgb(image, pixel_range=pixel_range)
        return upright(pixels, which) if which in range(2, 9) else pixels
    except InputError:
        raise
    except BROKEN as error:  # PIL reads the pixels of a file no sooner than here
        raise InputError(f"a PIL image cannot be read: {error}") from error


def _of_array(image: Any) -> np.ndarray:
    """See :func:`image_of`, for an array or what NumPy makes one of."""
    try:
        pixels = np.asarray(image)
    except ValueError as error:  # lists of unequal lengths
        raise InputError(f"an image is an array, not {type(image).__name__}: {error}") from error
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise InputError(
            f"an image is a path, a URL, a PIL image or a uint8 array [H, W, 3] (RGB), not "
            f"{type(image).__name__} of {pixels.dtype} {list(pixels.shape)}"
        )
    if not pixels.size:
        raise InputError(f"an image of {list(pixels.shape)} has no pixels")
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3])


def decoded(data: bytes, name: str = "", pixel_range: PixelRange = None) -> np.ndarray:
    """The pixels of an image file's content, [H, W, 3] uint8 RGB, upright.

    Args:
        data: the file's bytes.
        name: of the file, which distinguishes a camera's raw from a TIFF.
        pixel_range: as in :func:`image_of`.

    Raises:
        InputError: it is no image, or a broken one; the message does not name the file.
    """
    _refuse_others(kind_of(data[:HEAD], name))
    try:
        inspect.inspect(data)
    except ValueError as error:
        raise InputError(str(error)) from error
    return decode_upright(data, pixel_range)


def _refuse_others(kind: Kind) -> None:
    if kind.use == "video":
        raise InputError(f"{refusal(kind)}: {_VIDEO}")
    if kind.use == "other":
        raise InputError(refusal(kind))


def _source(path: str) -> Path | bytes:
    """A local image's path; the content of one on a server."""
    local = Path(path) if Path(path).exists() else urls.locate(path).folder
    there = local is not None and local.exists()
    if (local is not None and local.is_dir()) or ("*" in path and not there):
        raise InputError("no image there")
    if local is not None and there and not local.is_file():
        raise InputError("is no regular file")  # a pipe or a device may never end
    if local is None:
        return remote.read_bytes(path, Retry())
    _refuse_others(kind_of_file(local))  # before a long video is read
    return local
