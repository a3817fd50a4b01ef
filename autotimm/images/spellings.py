"""How a name in an annotation file and that of its file are made alike."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from urllib.parse import unquote

URL = "file_name is a URL (its path taken)"
BACKSLASHES = "file_name has backslashes (taken for slashes)"


def same(name: str) -> str:
    return name


def composed(name: str) -> str:
    import unicodedata  # most names are as their files are

    return unicodedata.normalize("NFC", name)


def small_extension(name: str) -> str:
    front, extension = os.path.splitext(composed(name))  # noqa: PTH122
    return front + extension.lower()


def caseless(name: str) -> str:
    return composed(name).casefold()


def decoded(name: str) -> str:
    return caseless(unquote(name))


def before_upload(name: str) -> str:
    """Takes off what Label Studio puts in front, and what Roboflow puts behind a base name."""
    name = re.sub(_UPLOAD, "", decoded(name))
    return re.sub(r"^(.+)_([a-z]{3,4})\.rf\.[0-9a-z]+\.[a-z]+$", r"\1.\2", name)


Spelling = tuple[Callable[[str], str], str, bool]
# How names are made alike, what that mends, and whether it can mean one file only.
SPELLINGS: tuple[Spelling, ...] = (
    (composed, "file_name has its accents in another Unicode form (file's taken)", True),
    (small_extension, "file_name's extension is in another case (file's taken)", True),
    (caseless, "file_name is in another case (file's taken)", False),
    (decoded, "file_name or its file is percent-encoded (decoded)", False),
)

_UPLOAD = r"^[0-9a-f]{8}((-[0-9a-f]{4}){3}-[0-9a-f]{12})?[-_](?=.)"
_PICTURES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".pgm", ".ppm"),
}


def picture_stem(name: str) -> str | None:
    """A picture's name without its extension; None if its extension is of no picture."""
    front, extension = os.path.splitext(decoded(name))  # noqa: PTH122
    return front if extension in _PICTURES else None


def trimmed(path: str) -> str:
    """A path without a query behind it, and blanks and quotes around it."""
    return re.sub(r"[?#].*$", "", path, flags=re.DOTALL).strip(" \t\r\n\"'")


def plain_path(name: str) -> tuple[str, str | None]:
    """Returns a name as a path with slashes, and what that mends."""
    local = re.search(r"(?:^|/)data/local-files/?\?(?:.*&)?d=([^&#]*)", name)
    if local:  # Label Studio's own files
        return unquote(local[1]), URL
    address = re.match(r"[A-Za-z][A-Za-z0-9+.-]+://[^/?#]*(/[^?#]*)", name)
    if address:
        return unquote(address[1]), URL
    slashes = re.sub("^(?=[A-Za-z]:/)", "/", name.replace("\\", "/"))  # a drive: absolute
    return slashes, BACKSLASHES if "\\" in name else None
