"""URLs as people give them: of which kind one is, which folder it names, what of it may be shown.

Invariant: no user, password, query (a signature) or fragment of a URL is in what is to be shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from autotimm.structures import InputError


def kind(text: str) -> str:
    """The scheme of a URL, "chained" for one of fsspec's with ``::``; empty for a folder's name."""
    match = re.match(r"(?i:file)(?=:/)|[A-Za-z][A-Za-z0-9+.-]*(?=://|::)", text)
    if match is None:
        return ""
    return "chained" if "::" in text else match[0].lower()


def file_path(url: str) -> Path:
    """The folder that a URL of kind "file" names.

    Raises:
        InputError: it is on another machine.
    """
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{shown(url)}: a file URL has three slashes: file:///folder")
    return Path(unquote(parts.path))


def shown(location: str) -> str:
    """A folder, or a URL without its secrets, as messages name it."""
    if not kind(location):
        return location
    return re.sub(r"(?<=://)[^/]*@", "", re.split(r"[?#]", location, maxsplit=1)[0])


def all_shown(value: Any) -> Any:
    """A plain value, with every URL in its lists and mappings as :func:`shown` has it."""
    if isinstance(value, Mapping):
        return {key: all_shown(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(all_shown, value))
    return shown(value) if isinstance(value, str) else value


def without_secrets(text: str) -> str:
    """A library's message without the secrets of URLs in it, such as a redirect brought."""
    text = re.sub(r"(?<=://)[^/\s'\"]*@", "", text)
    return re.sub(r"(?<=\S)[?#][^\s'\"]+", "", text)  # also of a path alone


def reason(error: Exception, url: str) -> str:
    """What an error with a URL says, on one line without secrets; else the name of its kind."""
    text = str(error).split("\n")[0].replace(url, shown(url))
    return without_secrets(text) or type(error).__name__
