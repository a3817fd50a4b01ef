"""Annotation files that are packed: gzip, and zip with one JSON file in it.

Nothing is written to the disk, and a file that unpacks to far more than an annotation file does is
refused before it fills the memory.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from autotimm.structures import InputError

if TYPE_CHECKING:
    import zipfile

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",  # an empty one
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
}
_READ = ("gzip", "zip")
_MOST = 4 * 2**30  # bytes, of text: COCO's own files have 0.5 GB
_ALWAYS = 2**26  # bytes, that any file may unpack to
_RATIO = 200  # times its own size, that a larger one may: polygons and indents come to 30


def kind(head: bytes) -> str | None:
    """Returns how a file is packed, by its first eight bytes; None if it is not."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def unpacked(data: bytes, how: str, path: Path) -> bytes:
    """Unpacks an annotation file.

    Args:
        data: content of the file.
        how: what ``kind`` says of it.
        path: of the file, for messages.

    Raises:
        InputError: it is damaged, holds no JSON file or several, or becomes too large.
    """
    if how not in _READ:
        raise InputError(f"{path}: is packed by {how}, which is not read: unpack it first")
    most = min(_MOST, max(_ALWAYS, _RATIO * len(data)))
    try:
        if how == "gzip":
            import gzip  # few files are packed

            with gzip.open(io.BytesIO(data)) as file:
                content = file.read(most + 1)
        else:
            content = _of_zip(data, most, path)
    except (InputError, MemoryError):
        raise
    except (NotImplementedError, RuntimeError) as error:  # a method of its own, a password
        raise InputError(
            f"{path}: is {how} that cannot be read: {error}: unpack it first"
        ) from None
    # zipfile raises another type of error for each kind of damage.
    except Exception as error:
        raise InputError(f"{path}: is {how}, but damaged: {error}") from None
    if len(content) > most:
        raise InputError(
            f"{path}: is {how} that unpacks to more than {most:,} bytes: unpack it first, if it is "
            "an annotation file"
        )
    return content


def _of_zip(data: bytes, most: int, path: Path) -> bytes:
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = [one for one in archive.infolist() if not one.is_dir() and not _is_hidden(one)]
        named = [one for one in files if one.filename.lower().endswith(".json")]
        chosen = named or files
        if len(chosen) != 1:
            names = ", ".join(ascii(one.filename)[1:-1] for one in chosen[:3])
            raise InputError(
                f"{path}: is zip with {len(chosen):,} JSON files ({names or 'none'}): unpack it, "
                "and give the one that is meant"
            )
        with archive.open(chosen[0]) as file:
            return file.read(most + 1)


def _is_hidden(member: zipfile.ZipInfo) -> bool:
    """Returns whether this is what macOS puts beside the files of an archive, or the like."""
    return any(part.startswith((".", "__MACOSX")) for part in member.filename.split("/"))
