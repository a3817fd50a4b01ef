"""Files from http(s) and S3: whole, checked, into a cache that any number of processes share.

Invariants: a file in the cache bears the sha256 of its content as its name and got there by a
rename, after size and hash were found right; so it is never partial, and two data sets whose shards
have the same names cannot meet. Only http, https and s3 are ever spoken, and nothing runs a shell.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from autotimm.sharding.manifest import whole_file
from autotimm.structures import InputError

_T = TypeVar("_T")

_CHUNK = 1 << 20  # bytes
_MANIFEST_LIMIT = 1 << 30  # bytes; a billion samples need some 200 MB
_STALL = 60  # seconds without a byte after which an attempt counts as failed


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a download is tried, and the seconds before the second try; they double."""

    attempts: int = 5
    wait: float = 1.0


class _RefusedError(Exception):
    """Trying again will not help."""


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/autotimm/shards``, or the same under ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autotimm" / "shards"


def local_path(location: str) -> Path | None:
    """The folder that a location names, or None where it is the URL of a server.

    Raises:
        InputError: the URL is of a kind that is not read, or needs a package that is missing.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.\-]*):", location)
    if "::" not in location and (scheme is None or Path(location).exists()):
        return Path(location)
    kind = scheme[1].lower() if scheme and "::" not in location else "chained"
    if kind == "file":
        parts = urlsplit(location)
        if parts.netloc not in ("", "localhost"):
            raise InputError(f"{location}: a file URL has three slashes: file:///folder")
        return Path(unquote(parts.path))
    if kind not in ("http", "https", "s3") or "://" not in location:
        raise InputError(
            f"{location}: {kind} URLs are not read: give a folder, or a file, http, https or s3 URL"
        )
    if kind == "s3" and importlib.util.find_spec("s3fs") is None:
        raise InputError(f"{location}: S3 needs s3fs: pip install autotimm[s3]")
    return None


def join(url: str, name: str) -> str:
    """The URL of a file in the folder that a URL names; a query (a signature) stays in place."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def shown(location: str) -> str:
    """A folder or URL as messages name it: without a query, which may be a secret."""
    return urlunsplit(urlsplit(location)._replace(query="")) if "://" in location else location


def read_bytes(url: str, retry: Retry) -> bytes:
    """Reads a small file.

    Raises:
        InputError: it cannot be had.
    """

    def attempt() -> bytes:
        content = b"".join(_chunks(url, _MANIFEST_LIMIT))
        if len(content) > _MANIFEST_LIMIT:
            raise _RefusedError(f"larger than {_MANIFEST_LIMIT} bytes")
        return content

    return _retried(url, attempt, retry)


def fetch(
    url: str,
    cache: Path,
    sha256: str,
    suffix: str,
    size: int | None,
    limit: int,
    retry: Retry,
    wait: bool = True,
) -> Path | None:
    """Brings a file into the cache, if it is not there.

    One process of the machine downloads, under a lock, and the others wait for it.

    Args:
        url: of the file.
        cache: folder, made where it is missing.
        sha256: of the content, hexadecimal.
        suffix: of the name in the cache.
        size: in bytes, where it is known.
        limit: bytes at which a download is broken off.
        retry: how often it is tried.
        wait: False to leave it to the process that is at it already.

    Returns:
        Where it lies; None if another process is downloading it and ``wait`` is False.

    Raises:
        InputError: it cannot be had, or is not what the manifest says.
        FileNotFoundError: the server does not have it.
    """
    path = cache / f"{sha256}{suffix}"
    if _is_there(path, size):
        return path

    def attempt() -> None:
        digest, count = hashlib.sha256(), 0
        with whole_file(path) as file:
            for chunk in _chunks(url, limit):
                digest.update(chunk)
                count += file.write(chunk)
            if size is not None and count != size:
                raise OSError(f"{count} bytes came, the manifest says {size}")
            if digest.hexdigest() != sha256:
                raise OSError("its content is not what the manifest says (sha256 differs)")

    with _lock(cache / "locks" / f"{sha256}{suffix}", wait) as held:
        if not held:
            return None
        if not _is_there(path, size):  # somebody else may have been quicker
            _retried(url, attempt, retry)
    return path


def sha256_of(path: Path) -> str:
    """The sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chunks(url: str, limit: int) -> Iterator[bytes]:
    """The content of a URL, broken off soon after ``limit`` bytes."""
    import fsspec  # here, as it takes a while that local shards need not wait

    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    opening: dict[str, Any] = {"cache_type": "readahead", "block_size": 8 << 20}
    if url.startswith("http"):
        import aiohttp

        # aiohttp's own limit of 5 minutes in all would end large shards; a stall is what matters.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_STALL, sock_read=_STALL)
        options["client_kwargs"] = {"timeout": timeout}
        opening = {"block_size": 0}  # one stream, no requests for ranges
    files, path = fsspec.url_to_fs(url, **options)
    with files.open(path, "rb", **opening) as stream:
        count = 0
        while count <= limit and (chunk := stream.read(_CHUNK)):
            count += len(chunk)
            yield chunk


def _retried(url: str, attempt: Callable[[], _T], retry: Retry) -> _T:
    name = shown(url)
    for left in reversed(range(retry.attempts)):
        try:
            return attempt()
        except FileNotFoundError:
            raise FileNotFoundError(f"{name}: the server has no such file") from None
        # The back ends raise their libraries' own errors, and there is no base class for them.
        except Exception as error:
            status = getattr(error, "status", None) or 500
            final = isinstance(error, _RefusedError | PermissionError) or (
                400 <= status < 500 and status not in (408, 425, 429)
            )
            if isinstance(error, OSError) and error.errno in (28, 122):  # no space, quota
                raise InputError(f"{error.filename or 'the cache'}: no space left for it") from None
            if final or not left:
                reason = str(error).split("\n")[0].replace(url, name) or type(error).__name__
                tries = "" if final else f" after {retry.attempts} tries"
                raise InputError(f"{name}: cannot be downloaded{tries}: {reason}") from error
            time.sleep(retry.wait * 2 ** (retry.attempts - 1 - left))
    raise ValueError("at least one attempt is needed")


@contextlib.contextmanager
def _lock(path: Path, wait: bool) -> Iterator[bool]:
    """Holds a lock among this machine's processes; the file stays, as removing it would race."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be used as a cache: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True  # closing the file releases the lock


def _is_there(path: Path, size: int | None) -> bool:
    try:
        return (size is None and path.is_file()) or path.stat().st_size == size
    except OSError:
        return False
