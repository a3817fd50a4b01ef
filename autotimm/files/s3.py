"""The S3 client of this process, for downloads and for uploads.

A client costs as much CPU as a download of some ten megabytes, because botocore reads its
descriptions of the service. Invariants: all threads of a process share a client, and a forked
process makes one of its own; where a store refuses keys that have expired, a new client reads them
again. (Keys with a known end, such as those of a role, botocore renews in the same client.)
"""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from autotimm.files.answers import AnswerError, of_store
from autotimm.files.connection import NoRangesError

REPLACED = frozenset(
    (
        *("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"),
        *("InvalidToken", "InvalidAccessKeyId", "InvalidClientTokenId"),
    )
)
"""Codes of stores whose cure may be newer keys."""

_SIGNED = 3600  # seconds for which a signature is asked
_RENEWED = 600  # seconds of its use: botocore signs by no key that ends within ten minutes
_SIGNATURES = 256  # kept at a time: with the token of a role, each has more than a kilobyte
_READ = ("AWS_", "FSSPEC_S3", "FSSPEC_CONFIG")  # a notebook may set these after a first try


class _Clients:
    """The clients of a process, by what they were made with."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.made: dict[str, Any] = {}


_clients = _Clients()
_inherited: list[_Clients] = []


def _begin_anew() -> None:
    """Leaves the clients to the parent of a process that has just been forked from it.

    They are kept for as long as the process lives: s3fs closes a client when it is collected, and
    would wait here for a thread that only the parent has.
    """
    global _clients
    _inherited.append(_clients)
    _clients = _Clients()


os.register_at_fork(after_in_child=_begin_anew)


def client(url: str, **config: Any) -> tuple[Any, str]:
    """The client for a URL, and the path of the URL for it.

    Args:
        url: s3 or s3a.
        config: of botocore, such as ``connect_timeout``.

    Returns:
        An s3fs.S3FileSystem, and bucket and key.

    Raises:
        ImportError: s3fs is not installed.
    """
    import fsspec

    kind = fsspec.get_filesystem_class("s3")
    of_url = kind._get_kwargs_from_urls(url)  # whether it names a version
    around = {name: value for name, value in os.environ.items() if name.startswith(_READ)}
    key = repr((sorted(config.items()), of_url, sorted(around.items())))
    with (here := _clients).lock:
        if key not in here.made:
            options = {"skip_instance_cache": True, "use_listings_cache": False, **of_url}
            here.made[key] = kind(config_kwargs=config, **options)
        return here.made[key], kind._strip_protocol(url)


def downloader(url: str, stall: float) -> tuple[Any, str]:
    """As :func:`client`, of downloads that fail after ``stall`` seconds without progress."""
    # botocore's own retries would hide the server's reason behind a timeout.
    times = {"connect_timeout": stall, "read_timeout": stall, "retries": {"max_attempts": 1}}
    if not re.match(r"s3://(?:[^/]*--x-s3/|arn:)", url):  # which have signatures of their own
        times["signature_version"] = "s3v4"  # else botocore signs URLs as new buckets refuse it
    return client(url, **times)


@dataclass(frozen=True, slots=True)
class _Signed:
    """An http(s) URL of an object, the client that has signed it, and when (by ``time.time``)."""

    url: str = field(repr=False)
    files: Any
    made: float


class Signatures:
    """http(s) URLs of objects, with signatures that count for some time.

    Args:
        stall: seconds after which a request that belongs to a signature has failed.
    """

    def __init__(self, stall: float) -> None:
        self._stall = stall
        self._made: dict[str, _Signed] = {}

    def url_of(self, url: str) -> str:
        """The signed URL of an S3 URL.

        Raises:
            NoRangesError: a signed URL does not lead to the store as s3fs does.
            Exception: whatever s3fs and botocore raise.
        """
        if not self._counts(url):
            if len(self._made) >= _SIGNATURES:
                self._made.clear()
            self._made[url] = self._signed(url)
        return self._made[url].url

    def is_present(self, url: str, signed: str) -> bool:
        """Whether a signed URL is the one that requests are sent with now."""
        return self._counts(url) and self._made[url].url == signed

    def renewed_after(self, url: str, error: Exception) -> bool:
        """Whether another signature may help, as the keys of the last one have expired."""
        last = self._made.get(url)
        if last is None or not keys_may_be_new(last.files, error):
            return False
        self._made.clear()
        return True

    def _counts(self, url: str) -> bool:
        # By the clock that goes on while the machine sleeps, as the store's does.
        return url in self._made and 0 <= time.time() - self._made[url].made < _RENEWED

    def _signed(self, url: str) -> _Signed:
        from botocore.utils import get_environ_proxies  # type: ignore[import-untyped]
        from fsspec.asyn import sync

        files, path = downloader(url, self._stall)
        text = sync(files.loop, files._url, path, expires=_SIGNED, timeout=self._stall)
        if get_environ_proxies(text).get(urlsplit(text).scheme):  # which botocore goes through
            raise NoRangesError("it is reached through a proxy")
        return _Signed(text, files, time.time())


def keys_may_be_new(files: Any, error: Exception) -> bool:
    """Whether another client may succeed where ``files`` had no keys, or keys that had expired.

    If so, :func:`client` makes another one, which reads the keys again.
    """
    answer = of_store(error)
    known = isinstance(answer, AnswerError) and answer.code in REPLACED
    if not known and type(error).__name__ != "NoCredentialsError":  # of botocore
        return False
    with (here := _clients).lock:
        here.made = {key: one for key, one in here.made.items() if one is not files}
    return True
