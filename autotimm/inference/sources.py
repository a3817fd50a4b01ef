"""Reads images from files, folders, patterns, URLs, PIL images and arrays."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from autotimm.files import remote, urls
from autotimm.files.retry import Retry
from autotimm.images import inspect
from autotimm.images.decode import decode_upright, rgb
from autotimm.structures import InputError, PixelRange

SUFFIXES = frozenset(f".{name}" for name in (*inspect.EXTENSIONS.values(), "jpeg", "tiff"))
"""Suffixes of the files in a folder that count as images."""


def find(words: Iterable[str]) -> list[str]:
    """The files and URLs that ``words`` stand for, each once, in the order of the words.

    Args:
        words: paths of files, of folders (all images in them and below, sorted), patterns such as
            ``photos/*.jpg`` or ``s3://bucket/photos/*.jpg``, or URLs. A path that does not exist,
            and a folder or pattern without any image, stay as they are: reading them then fails
            with a message that names them.

    Raises:
        InputError: the store of a pattern cannot be listed.
    """
    found: list[str] = []
    for word in words:
        if urls.kind(word) == "file":
            word = str(urls.file_path(word))
        if urls.kind(word):
            names = _matching(word) if "*" in word else [word]
        elif Path(word).is_dir():
            names = sorted(str(p) for p in Path(word).rglob("*") if _is_image(p))
        elif glob.has_magic(word) and not Path(word).exists():
            # Path.glob takes no absolute pattern.
            paths = glob.glob(word, recursive=True)  # noqa: PTH207
            names = sorted(path for path in paths if _is_image(Path(path)))
        else:
            names = [word]
        found += names or [word]
    return list(dict.fromkeys(found))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _matching(pattern: str) -> list[str]:
    import fsspec

    urls.locate(pattern)  # raises InputError for a kind of URL that is not supported
    kind = urls.kind(pattern)
    try:
        files = fsspec.filesystem(kind).glob(pattern)
    except Exception as error:  # each of fsspec's back ends raises its library's own errors
        reason = urls.without_secrets(" ".join(str(error).split()))
        raise InputError(f"{urls.shown(pattern)}: cannot be listed: {reason}") from error
    found = [file if "://" in file else f"{kind}://{file}" for file in files]
    return sorted(one for one in found if Path(one).suffix.lower() in SUFFIXES)


def pixels_of(image: Any, pixel_range: PixelRange = None) -> np.ndarray:
    """An image as [H, W, 3] uint8 RGB, upright as viewers show it.

    Args:
        image: a path, a URL, a PIL image, or an array [H, W], [H, W, 1], [H, W, 3] (RGB) or
            [H, W, 4], uint8.
        pixel_range: what becomes black and white in an image of more than 8 bits a channel.

    Raises:
        InputError: it cannot be read or is no image; the message names the file.
    """
    if isinstance(image, str | os.PathLike):
        name = urls.shown(os.fspath(image))
        try:
            return decoded(_bytes(os.fspath(image)), pixel_range)
        except InputError as error:
            raise InputError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from error
        except OSError as error:
            reason = error.strerror or str(error).removeprefix(f"{name}: ")
            raise InputError(f"{name}: cannot be read: {reason}") from error
    if isinstance(image, Image.Image):
        try:
            return rgb(ImageOps.exif_transpose(image), pixel_range=pixel_range)
        except InputError:
            raise
        except inspect.BROKEN as error:  # PIL reads the pixels of a file no sooner than here
            raise InputError(f"a PIL image cannot be read: {error}") from error
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


def decoded(data: bytes, pixel_range: PixelRange = None) -> np.ndarray:
    """The pixels of an image file's content, [H, W, 3] uint8 RGB, upright.

    Raises:
        InputError: it is no image, or a broken one; the message does not name the file.
    """
    try:
        inspect.inspect(data)
    except ValueError as error:
        raise InputError(str(error)) from error
    return decode_upright(data, pixel_range)


def _bytes(path: str) -> bytes:
    local = Path(path) if Path(path).exists() else urls.locate(path).folder
    there = local is not None and local.exists()
    if (local is not None and local.is_dir()) or ("*" in path and not there):
        raise InputError(f"no image there ({', '.join(sorted(SUFFIXES))})")
    if local is not None and there and not local.is_file():
        raise InputError("is no regular file")  # a pipe or a device may never end
    return remote.read_bytes(path, Retry()) if local is None else local.read_bytes()


def read_ahead(
    items: Iterable[Any], threads: int = 4, pixel_range: PixelRange = None
) -> Iterator[np.ndarray | InputError]:
    """Yields the pixels of images in order; threads read ahead while the caller works.

    For an image that cannot be read it yields the error.
    """
    from collections import deque
    from concurrent.futures import Future, ThreadPoolExecutor

    def attempt(item: Any) -> np.ndarray | InputError:
        try:
            return pixels_of(item, pixel_range)
        except InputError as error:
            return error

    waiting: deque[Future[np.ndarray | InputError]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(attempt, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
