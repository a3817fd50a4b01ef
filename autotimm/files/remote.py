"""Downloads over http(s) and from S3.

Invariants: only http, https and s3 are used, also after a redirect, and nothing runs a shell; no
server can keep a reader busy for ever, whether it sends nothing, too little, or an endless file;
no message contains a URL's secrets.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit, urlunsplit

from autotimm.files import urls
from autotimm.files.retry import Retry, retried
from autotimm.structures import InputError

_T = TypeVar("_T")

_CHUNK = 1 << 20  # bytes
_MANIFEST_LIMIT = 1 << 30  # bytes; a billion samples need some 200 MB
_TRICKLE = 1024  # bytes a second; a slower download counts as stalled


class _RefusedError(Exception):
    """An error that a retry will not cure."""


def join(url: str, name: str) -> str:
    """The URL of a file in the folder ``url``; a query (a signature) stays at the end."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def read_bytes(url: str, retry: Retry) -> bytes:
    """Reads a small file.

    Raises:
        InputError: the file cannot be downloaded, or is larger than 1 GiB.
        FileNotFoundError: the server does not have it.
    """

    def attempt() -> bytes:
        content = b"".join(chunks(url, _MANIFEST_LIMIT, retry.stall))
        if len(content) > _MANIFEST_LIMIT:
            raise _RefusedError(f"larger than {_MANIFEST_LIMIT} bytes")
        return content

    return download(url, attempt, retry)


def sha256_of(path: Path) -> str:
    """The sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def chunks(url: str, at_most: int, stall: float) -> Iterator[bytes]:
    """Yields the content of a URL, and stops soon after ``at_most`` bytes.

    Raises:
        OSError: the server sent nothing, or less than 1 kB a second, for ``stall`` seconds.
        Exception: whatever fsspec, aiohttp and botocore raise.
    """
    import aiohttp  # imported here because both are slow to import, and local shards need neither
    import fsspec

    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if url.startswith("s3"):
        options["config_kwargs"] = {"connect_timeout": stall, "read_timeout": stall}
        opening: dict[str, Any] = {"cache_type": "readahead", "block_size": 16 << 20}
    else:
        # aiohttp's default limit of 5 minutes in all would interrupt the download of large shards.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall, sock_read=stall)
        options["client_kwargs"] = {"timeout": timeout}
        # One stream rather than ranges. With any size given, fsspec does not ask the server for it
        # by a HEAD request, which signed URLs refuse.
        opening = {"block_size": 0, "size": 1}
    try:
        files, path = fsspec.url_to_fs(url, **options)
        with files.open(path, "rb", **opening) as stream:
            yield from _unless_it_trickles(stream, at_most, stall)
    except TimeoutError:
        raise OSError(f"nothing came for {stall:g} seconds") from None
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:  # after a redirect
        raise _RefusedError(f"{error} is not an http(s) address") from None


def _unless_it_trickles(stream: BinaryIO, at_most: int, stall: float) -> Iterator[bytes]:
    count, before, since = 0, 0, time.monotonic()
    while count <= at_most and (chunk := stream.read(_CHUNK)):
        count += len(chunk)
        yield chunk
        seconds = time.monotonic() - since
        if seconds > stall:
            if count - before < _TRICKLE * seconds:
                raise OSError(f"only {count - before:,} bytes came in {seconds:.1f} seconds")
            before, since = count, since + seconds


def download(url: str, attempt: Callable[[], _T], retry: Retry) -> _T:
    """Calls ``attempt``, which downloads ``url``, until it succeeds or ``retry`` allows no more.

    Raises:
        InputError: the download failed; one line that names the URL.
        FileNotFoundError: the server does not have the file.
    """
    name = urls.shown(url)
    try:
        return retried(attempt, retry, _is_final)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: the server has no such file") from None
    except InputError:
        raise
    except Exception as error:
        tries, reason = retry.tries(_is_final(error)), urls.reason(error, url)
        raise InputError(f"{name}: cannot be downloaded{tries}: {reason}") from error


def _is_final(error: Exception) -> bool:
    # An InputError is about this machine, for example a full disk.
    if isinstance(error, InputError | FileNotFoundError | PermissionError | _RefusedError):
        return True
    status = getattr(error, "status", None) or 500
    return 400 <= status < 500 and status not in (408, 425, 429)
