"""Downloads over http(s) and from S3.

Invariants: only http, https and s3 are used, also after a redirect, and nothing runs a shell; no
server can keep a reader busy for ever, whether it sends nothing, too little, or an endless file:
from connecting to the last byte, a download has to go on.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

from autotimm.files import answers, s3, urls
from autotimm.files.answers import RefusedError
from autotimm.files.retry import Retry, retried, tries_of
from autotimm.structures import InputError

_T = TypeVar("_T")

_CHUNK = 1 << 20  # bytes
_MANIFEST_LIMIT = 1 << 30  # bytes; a billion samples need some 200 MB
_LIMIT = 1 << 50  # bytes of a file of any size
TRICKLE = 1024  # bytes a second; a slower download counts as stalled


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
            raise RefusedError(f"larger than {_MANIFEST_LIMIT} bytes")
        return content

    return download(url, attempt, retry)


def sha256_of(path: Path) -> str:
    """The sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def opened(path: str | Path, retry: Retry | None = None) -> Iterator[BinaryIO]:
    """Opens a file at a path or a URL; one at a URL is copied to a temporary file first.

    A reader may therefore read it twice: to compare its checksum, and to use it.

    Raises:
        InputError: the file cannot be downloaded.
        FileNotFoundError: there is no such file.
    """
    if (kind := urls.kind(str(path))) not in ("http", "https", "s3"):
        import fsspec

        with fsspec.open(str(path), "rb") as file:
            if kind in ("", "file"):
                yield cast(BinaryIO, file)
                return
            with tempfile.TemporaryFile() as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
                copy.seek(0)
                yield cast(BinaryIO, copy)
        return
    url, retry = urls.locate(path).given, retry or Retry()
    with tempfile.TemporaryFile() as file:

        def attempt() -> None:
            file.seek(0)
            file.truncate()
            for chunk in chunks(url, _LIMIT, retry.stall):
                file.write(chunk)
            file.flush()

        download(url, attempt, retry)
        file.seek(0)
        yield cast(BinaryIO, file)


def chunks(url: str, at_most: int, stall: float) -> Iterator[bytes]:
    """Yields the content of a URL, and stops soon after ``at_most`` bytes.

    Raises:
        OSError: the server sent nothing of the content, or less than 1 kB a second of it, for
            ``stall`` seconds, those for the connection and the headers included.
        FileNotFoundError: the server does not have the file.
        AnswerError: the server answered with something else.
        Exception: whatever fsspec, aiohttp and botocore raise.
    """
    import aiohttp  # imported here because both are slow to import, and local shards need neither
    import fsspec

    try:
        if urls.kind(url) == "s3":
            yield from _unless_it_trickles(_S3Stream(url, stall), at_most, stall)
            return
        # aiohttp's default limit of 5 minutes in all would interrupt the download of large shards.
        timeout = aiohttp.ClientTimeout(total=None)
        asked = {"timeout": timeout, "raise_for_status": answers.check}
        files, path = fsspec.url_to_fs(url, client_kwargs=asked, skip_instance_cache=True)
        yield from _unless_it_trickles(_Stream(files, path, stall), at_most, stall)
    except TimeoutError:
        raise OSError(f"nothing came for {stall:g} seconds") from None
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:  # after a redirect
        raise RefusedError(f"{error} is not an http(s) address") from None
    except aiohttp.TooManyRedirects:
        raise RefusedError("the server redirects without an end") from None
    except Exception as error:
        raise answers.of_store(error) from error.__cause__


class _Stream:
    """A file on a server, each read of which has ``stall`` seconds; the first one connects.

    A timeout of the socket would not do: headers that come byte by byte, 100 Continue without an
    end and compressed blocks that hold nothing keep a socket busy.
    """

    def __init__(self, files: Any, path: str, stall: float) -> None:
        self._files, self._path, self._stall = files, path, stall
        self._body: Any = None
        self._response: Any = None

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes, those that are there; none at the end."""
        from fsspec.asyn import sync

        return sync(self._files.loop, self._read, size, timeout=self._stall)

    def close(self) -> None:
        """Closes the connection."""
        from fsspec.asyn import sync

        if self._response is not None:
            sync(self._files.loop, self._close)

    async def _read(self, size: int) -> bytes:
        if self._body is None:
            await self._open()
        return await self._body.read(size)

    async def _open(self) -> None:
        session = await self._files.set_session()
        # As it is stored: a content that the server compresses on its way has another length.
        headers = {"Accept-Encoding": "identity"}
        self._response = await session.get(self._files.encode_url(self._path), headers=headers)
        self._body = self._response.content

    async def _close(self) -> None:
        self._response.close()


class _S3Stream(_Stream):
    """The same of an object in S3."""

    def __init__(self, url: str, stall: float) -> None:
        self._url = url
        super().__init__(*s3.downloader(url, stall), stall)

    async def _open(self) -> None:
        try:
            self._body = await self._get()
        except Exception as error:  # of s3fs and botocore
            if not s3.keys_may_be_new(self._files, error):
                raise
            self._files, _ = s3.downloader(self._url, self._stall)
            self._body = await self._get()
        self._response = self._body

    async def _get(self) -> Any:
        bucket, key, version = self._files.split_path(self._path)
        which = {"Bucket": bucket, "Key": key} | ({"VersionId": version} if version else {})
        return (await self._files._call_s3("get_object", **which))["Body"]


def _unless_it_trickles(stream: _Stream, at_most: int, stall: float) -> Iterator[bytes]:
    count, before, since = 0, 0, time.monotonic()
    with contextlib.closing(stream):
        while count <= at_most and (chunk := stream.read(_CHUNK)):
            count += len(chunk)
            yield chunk
            seconds = time.monotonic() - since
            if seconds > stall:
                if count - before < TRICKLE * seconds:
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
        return retried(attempt, retry, answers.is_final, answers.wait_after, name)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: the server has no such file") from None
    except InputError:
        raise
    except Exception as error:
        tries = tries_of(error)
        raise InputError(f"{name}: cannot be downloaded{tries}: {urls.reason(error)}") from error
