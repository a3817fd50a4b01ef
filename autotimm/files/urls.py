"""Parsing the folders and URLs that users give.

Invariant: a URL as shown has no user, password, query (a signature) or fragment.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from autotimm import redaction
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
    redaction.learn(text)
    scheme, name = kind(text), shown(text)
    if not scheme:
        other = re.match(r"([A-Za-z][A-Za-z0-9+.\-]*):", text)
        if other is None or os.path.exists(text):  # noqa: PTH110 (without an error for odd names)
            return Location(text, home_expanded(text))
        scheme, name = other[1].lower(), re.split(r"[?#]", text, maxsplit=1)[0]
    if re.match(r"https?://(?:[^/?#]*@)?\[", text, re.IGNORECASE):
        raise InputError(f"{name}: IPv6 addresses are not supported: give the server's name")
    if scheme in ("http", "https", "s3") and not re.match(r"[^:]*://[^/?#]", text):
        host = "bucket" if scheme == "s3" else "host"
        raise InputError(f"{name}: not a complete URL, such as {scheme}://{host}/folder")
    try:
        urlsplit(text)
    except ValueError as error:  # brackets that do not match, letters that look like a slash
        raise InputError(f"{name}: not a URL: {error}") from None
    if scheme == "file":
        return Location(text, file_path(text))
    _check_user(text, scheme, name)
    if scheme not in ("http", "https", "s3"):
        raise InputError(
            f"{name}: {scheme} URLs are not read: give a folder, or a file, http, https or s3 URL"
        )
    if scheme == "s3" and importlib.util.find_spec("s3fs") is None:
        raise InputError(f"{name}: S3 needs s3fs: pip install s3fs")
    return Location(text, None)


def _check_user(url: str, scheme: str, name: str) -> None:
    user = redaction.user_part(url.partition("://")[2])
    if user and scheme == "s3":
        raise InputError(
            f"{name}: an s3 URL takes no keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if re.search(r"[/?#]", user) and "@" not in re.split(r"[/?#]", user)[0]:
        raise InputError(
            f"{name}: its user or password holds a /, ? or #, where a URL's host would end: write "
            "%2F, %3F or %23"
        )


def home_expanded(path: str | Path) -> Path:
    """A local path with a ``~`` at its beginning replaced by the user's home folder.

    Raises:
        InputError: there is no such home folder, or the path contains a NUL byte.
    """
    if kind(str(path)):
        raise InputError(f"{path}: is a URL: give a folder on this machine")
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
    return redaction.bare(location) if kind(location) else location


def reason(error: BaseException) -> str:
    """The first line of an error, or else the error's type."""
    return str(error).strip().split("\n")[0] or type(error).__name__
