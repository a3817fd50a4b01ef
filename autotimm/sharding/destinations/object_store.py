"""The requests that shards in a store need: list, read, send and remove, each tried again.

Invariants: a file appears under its name when it is complete.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from autotimm.files import answers, s3, urls
from autotimm.files.atomic import FULL
from autotimm.files.retry import Retry, retried, tries_of
from autotimm.sharding.destinations.journal import WORK
from autotimm.structures import InputError

_T = TypeVar("_T")

_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "r2", "memory"}
"""Stores in which an object appears only when it is complete; in others we rename it then."""


@dataclass(slots=True)
class ObjectStore:
    """A folder in an object store, or in anything else that fsspec writes to.

    Attributes:
        url: of the folder, with a scheme that fsspec knows.
        retry: how often to try a request.

    The methods raise an OSError if a request fails at last, and an InputError as ``check``.
    """

    url: str
    retry: Retry = field(default_factory=Retry)

    def __str__(self) -> str:
        return urls.shown(self.url)

    @property
    def scheme(self) -> str:
        """The URL's scheme."""
        return urlsplit(self.url).scheme.lower()

    @property
    def _at_once(self) -> bool:
        return self.scheme in _WHOLE

    def check(self) -> None:
        """Checks the URL without a request.

        Raises:
            InputError: fsspec does not know the scheme, or needs a package that is not installed.
        """
        import fsspec

        with self._known():
            fsspec.get_filesystem_class(self.scheme)

    def listing(self, folder: str = "") -> dict[str, int]:
        """The files in a folder of the destination: name -> bytes."""

        def attempt(files: Any, root: str) -> dict[str, int]:
            try:
                found = files.ls(f"{root}/{folder}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
            return {
                file["name"].rstrip("/").rpartition("/")[2]: file["size"]
                for file in found
                if file["type"] == "file"
            }

        return self._retried("read", attempt)

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""

        def attempt(files: Any, root: str) -> bytes | None:
            try:
                return files.cat_file(f"{root}/{name}")
            except FileNotFoundError:
                return None

        return self._retried("read", attempt)

    def send(self, source: Path | bytes, name: str) -> None:
        """Uploads a file, so that it appears under its name when it is complete."""

        def attempt(files: Any, root: str) -> None:
            at_once = self._at_once
            target = f"{root}/{name}" if at_once else f"{root}/{WORK}/{name.rpartition('/')[2]}.tmp"
            if not at_once:
                files.makedirs(f"{root}/{WORK}", exist_ok=True)
            if isinstance(source, bytes):
                files.pipe_file(target, source)
            else:
                files.put_file(str(source), target)
            if not at_once:
                with contextlib.suppress(FileNotFoundError):  # not all can rename over a file
                    files.rm_file(f"{root}/{name}")
                files.mv(target, f"{root}/{name}")

        self._retried(f"written ({name.rpartition('/')[2]})", attempt)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""

        def attempt(files: Any, root: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                files.rm_file(f"{root}/{name}")

        self._retried("cleaned up", attempt)

    def remove_folder(self, name: str) -> None:
        """Removes an empty folder where folders exist: object stores have only names."""
        if not self._at_once:
            with contextlib.suppress(OSError):
                files, root = self._files()
                files.rmdir(f"{root}/{name}")

    def _files(self) -> tuple[Any, str]:
        """The file system, of which a process makes only one, and the folder's path."""
        import fsspec

        with self._known():
            if self.scheme in ("s3", "s3a"):
                # botocore's own retries take minutes, for each of ours.
                files, root = s3.client(self.url, connect_timeout=20, retries={"max_attempts": 2})
            else:
                files, root = fsspec.url_to_fs(self.url, use_listings_cache=False)
        return files, root.rstrip("/")

    def _once(self, attempt: Callable[[Any, str], _T]) -> _T:
        files, root = self._files()
        try:
            return attempt(files, root)
        except Exception as error:  # each back end of fsspec raises its library's own
            if not s3.keys_may_be_new(files, error):
                raise
        return attempt(*self._files())

    @contextlib.contextmanager
    def _known(self) -> Iterator[None]:
        try:
            yield
        except ImportError as error:  # fsspec's message says what to install
            raise InputError(f"{self}: {urls.reason(error)}") from None
        except ValueError as error:
            reason = urls.reason(error)
            raise InputError(f"{self}: cannot be written to: {reason}") from None

    def _retried(self, what: str, attempt: Callable[[Any, str], _T]) -> _T:
        try:
            once = partial(self._once, attempt)
            return retried(once, self.retry, _is_final, _wait_after, str(self))
        except InputError:
            raise
        except Exception as error:
            if _is_full(error):
                raise
            reason = urls.reason(answers.of_store(error))
            raise OSError(f"{self}: cannot be {what}{tries_of(error)}: {reason}") from None


def _is_final(error: Exception) -> bool:
    return isinstance(error, NotImplementedError) or answers.is_final(answers.of_store(error))


def _wait_after(error: Exception) -> float:
    return answers.wait_after(answers.of_store(error))


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in FULL
