"""Parsing the folders and URLs that users give, and hiding the secrets of URLs in messages.

Invariant: a URL as shown has no user, password, query (a signature) or fragment.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from autotimm.structures import InputError


@dataclass(frozen=True, slots=True)
class Location:
    """A folder or file, on this machine or on a server; ``str()`` of it leaves out secrets.

    Attributes:
        given: what the user wrote; a URL may contain a password or a signature.
        folder: the path on this machine; None on a server.
    """

    given: str = field(repr=False)
    folder: Path | None

    def __str__(self) -> str:
        return shown(self.given)


def locate(given: str | Path | Location) -> Location:
    """Parses a path or a file, http, https or s3 URL, without checking that it exists.

    A ``~`` at the beginning of a path stands for the user's home folder.

    Raises:
        InputError: the URL is incomplete, has another scheme, or needs a package that is not
            installed; or the path is not a valid one.
    """
    if isinstance(given, Location):
        return given
    text = str(given)
    scheme, name = kind(text), shown(text)
    if not scheme:
        other = re.match(r"([A-Za-z][A-Za-z0-9+.\-]*):", text)
        if other is None or Path(text).exists():
            return Location(text, home_expanded(text))
        scheme, name = other[1].lower(), without_secrets(text)
    if re.match(r"https?://(?:[^/?#]*@)?\[", text, re.IGNORECASE):
        raise InputError(f"{name}: IPv6 addresses are not supported: give the server's name")
    if scheme in ("http", "https", "s3") and not re.match(r"[^:]*://[^/?#]", text):
        host = "bucket" if scheme == "s3" else "host"
        raise InputError(f"{name}: not a complete URL, such as {scheme}://{host}/folder")
    if scheme == "file":
        return Location(text, file_path(text))
    if scheme not in ("http", "https", "s3"):
        raise InputError(
            f"{name}: {scheme} URLs are not read: give a folder, or a file, http, https or s3 URL"
        )
    if scheme == "s3" and importlib.util.find_spec("s3fs") is None:
        raise InputError(f"{name}: S3 needs s3fs: pip install s3fs")
    return Location(text, None)


def home_expanded(path: str | Path) -> Path:
    """A local path with a ``~`` at its beginning replaced by the user's home folder.

    Raises:
        InputError: there is no such home folder, or the path contains a NUL byte.
    """
    if "\0" in str(path):
        raise InputError(f"{str(path)!r}: a path cannot contain a NUL byte")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: there is no such home folder: write the path out") from None


def kind(text: str) -> str:
    """The scheme of a URL, "chained" for a chained URL of fsspec (``::``), or "" for a path."""
    match = re.match(r"(?i:file)(?=:/)|[A-Za-z][A-Za-z0-9+.-]*(?=://|::)", text)
    if match is None:
        return ""
    return "chained" if "::" in text else match[0].lower()


def file_path(url: str) -> Path:
    """The local path that a ``file:`` URL names.

    Raises:
        InputError: the URL names another machine.
    """
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{shown(url)}: a file URL has three slashes: file:///folder")
    return Path(unquote(parts.path))


def shown(location: str) -> str:
    """A path as it is, or a URL without its secrets, for messages."""
    if not kind(location):
        return location
    return re.sub(r"(?<=://)[^/]*@", "", re.split(r"[?#]", location, maxsplit=1)[0])


def all_shown(value: Any) -> Any:
    """A copy of a plain value with :func:`shown` applied to every string in it."""
    if isinstance(value, Mapping):
        return {key: all_shown(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(all_shown, value))
    return shown(value) if isinstance(value, str) else value


def without_secrets(text: str) -> str:
    """A library's message without the secrets of the URLs in it, a redirect's included."""
    text = re.sub(r"(?<=://)[^/\s'\"]*@", "", text)
    return re.sub(r"(?<=\S)[?#][^\s'\"]+", "", text)  # also after a path without a scheme


def reason(error: Exception, url: str) -> str:
    """The first line of an error about ``url``, without secrets, or else the error's type."""
    text = str(error).split("\n")[0].replace(url, shown(url))
    return without_secrets(text) or type(error).__name__
