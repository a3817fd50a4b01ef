"""Where shards go: a folder of this machine (``staging.py``) or a store (``upload.py``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import unquote, urlsplit

from autotimm.sharding.staging import LocalFolder
from autotimm.structures import InputError

if TYPE_CHECKING:
    from autotimm.sharding.upload import RemoteFolder

Destination: TypeAlias = "LocalFolder | RemoteFolder"


def destination(text: str) -> Destination:
    """The destination that a folder's name or a URL on the command line means.

    Raises:
        InputError: nothing can be written there.
    """
    if not text:
        raise InputError("DST: empty; give a folder or a URL")
    kind = url_kind(text)
    if not kind:
        return LocalFolder(Path(text))
    if kind in ("chained", "http", "https"):
        raise InputError(
            f"DST: {kind} URLs cannot be written to; give a folder, or the URL of a store such as "
            "s3://bucket/folder"
        )
    if kind == "memory":
        raise InputError(
            "DST: memory URLs are gone with the process; give a folder, or the URL of a store"
        )
    if kind == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise InputError("DST: a file URL has three slashes: file:///folder")
        return LocalFolder(Path(unquote(parts.path)))
    from autotimm.sharding.upload import RemoteFolder

    return RemoteFolder(text)


def url_kind(text: str) -> str:
    """The scheme of a URL, "chained" for one of fsspec's with ``::``; empty for a folder's name."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)(://|::)", text)
    if match is None:
        return ""
    return "chained" if "::" in text else match[1].lower()
