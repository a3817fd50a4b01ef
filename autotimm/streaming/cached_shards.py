"""The tars and indices of a split's shards at a URL, which go through the cache."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from autotimm.files import remote
from autotimm.files.urls import Location
from autotimm.format.index import most_bytes
from autotimm.format.manifest import MANIFEST, Shard
from autotimm.streaming.cache import Cache, RemoteFile, in_use
from autotimm.streaming.order import WINDOW
from autotimm.streaming.shard_files import ShardFiles, T
from autotimm.streaming.sparse import SparseFile
from autotimm.structures import InputError

_FETCHERS = 8  # indices downloaded at a time: they are small, so latency takes most of the time


class CachedShardFiles(ShardFiles):
    """Shards from a URL, downloaded into the cache.

    Args:
        cache: where to download to.
        location, shards, authority, current: see ``ShardFiles``.

    Raises:
        InputError: the cache's limit is less than a window of shards takes.
    """

    _remedy = "delete it"

    def __init__(
        self,
        location: Location,
        shards: list[Shard],
        authority: str,
        cache: Cache,
        current: Callable[[], list[Shard]] | None = None,
    ) -> None:
        super().__init__(location, shards, authority, current)
        self.cache = cache
        self.thread: threading.Thread | None = None  # downloads in the background
        # The plan of the thread: shards, and the names of files that must not make room for each.
        self._ahead: deque[tuple[int, frozenset[str]]] = deque()
        self._tars = True
        self.kept: frozenset[str] = frozenset()  # names of the files of the present window
        self._check_limit()

    def __getstate__(self) -> dict[str, Any]:  # for workers that are spawned rather than forked
        return self.__dict__ | {"_ahead": deque(), "thread": None}

    def path(self, shard: int) -> Path:
        """See ``ShardFiles``."""
        with self.named(shard):
            return self.cache.fetch(self._tar(shard), self.kept)

    def refetch(self, shard: int) -> bool:
        """See ``ShardFiles``."""
        return self.cache.remove_changed(self._tar(shard))

    def every(self, read: Callable[[int], T]) -> list[T]:
        """See ``ShardFiles``; downloads several indices at a time."""
        with ThreadPoolExecutor(_FETCHERS) as pool:
            return list(pool.map(read, range(len(self._shards))))

    def size(self, shard: int) -> int:
        """The bytes of a tar."""
        return self._shards[shard].bytes

    def url_of(self, shard: int) -> str:
        """The URL of a tar, with its secrets."""
        return remote.join(self._location.given, self._shards[shard].name)

    def has_whole(self, shard: int) -> bool:
        """Whether a tar lies in the cache as a whole."""
        return in_use(self.cache.folder / self._tar(shard).name, self.size(shard))

    def has_index(self, shard: int) -> bool:
        """Whether an index lies in the cache."""
        return in_use(self.cache.folder / self._index(shard).name, None)

    def sparse(self, shard: int) -> SparseFile:
        """The file of the cache for single samples of a tar."""
        return SparseFile(self.cache, replace(self._tar(shard), suffix=".part"))

    def fetch_indices(self, shards: Iterable[int]) -> None:
        """Downloads indices, several at a time; what fails, ``index`` raises."""
        folder = self.cache.folder
        lacking = [s for s in shards if not (folder / self._index(s).name).exists()]
        if len(lacking) == 1:
            self._fetch_index(lacking[0])
        elif lacking:
            with ThreadPoolExecutor(_FETCHERS) as pool:
                list(pool.map(self._fetch_index, lacking))

    def _fetch_index(self, shard: int) -> None:
        with contextlib.suppress(InputError, FileNotFoundError):
            self.cache.fetch_ahead(self._index(shard), self.kept)

    def prefetch(self, shards: Iterable[int], tars: bool = True) -> None:
        """Downloads these shards in the background, in this order; replaces an earlier plan.

        Args:
            shards: the present window, and the next one.
            tars: False for the indices alone.
        """
        plan, self._tars = list(shards), tars
        suffix = ".tar" if tars else ".part"
        names = [
            [replace(self._tar(shard), suffix=suffix).name, self._index(shard).name]
            for shard in plan
        ]
        before = [frozenset(itertools.chain(*names[:i])) for i in range(len(plan) + 1)]
        self.kept = before[min(WINDOW, len(plan))]
        self._ahead.clear()
        self._ahead.extend(zip(plan, before, strict=False))
        if self.thread is None or not self.thread.is_alive():
            self.thread = threading.Thread(target=self._fetch_ahead, daemon=True)
            self.thread.start()

    def _fetch_ahead(self) -> None:
        while self._ahead:
            try:
                shard, keep = self._ahead.popleft()
            except IndexError:  # prefetch() has just cleared the plan
                continue
            try:
                if self._tars and not self.cache.fetch_ahead(self._tar(shard), keep):
                    return
                with contextlib.suppress(FileNotFoundError):  # index() builds it from the tar
                    self.cache.fetch_ahead(self._index(shard), keep)
            except (InputError, FileNotFoundError):
                return  # the reader will get the same error, and raises it

    def _check_limit(self) -> None:
        if self.cache.limit is None:
            return
        numbers = range(len(self._shards))
        sizes = [self._tar(shard).at_most + self._index(shard).at_most for shard in numbers]
        needed = sum(sorted(sizes)[-WINDOW:])
        if self.cache.limit < needed:
            raise InputError(
                f"cache_limit is {self.cache.limit:,} bytes, but the shards of "
                f"{self._location} that are read at a time need {needed:,}: set it "
                "to that or more, or make smaller shards (autotimm-shard --max-shard-size)"
            )

    def _tar(self, shard: int) -> RemoteFile:
        info = self._shards[shard]
        url = remote.join(self._location.given, info.name)
        check = self.check_not_rewritten
        return RemoteFile(url, info.sha256, ".tar", info.bytes, info.bytes, changed=check)

    def _index(self, shard: int) -> RemoteFile:
        info = self._shards[shard]
        url = remote.join(self._location.given, info.index)
        check = self.check_not_rewritten
        return RemoteFile(url, info.index_sha256, ".npy", most_bytes(info), changed=check)

    @contextlib.contextmanager
    def named(self, shard: int) -> Iterator[None]:
        """Turns a FileNotFoundError of the server into an InputError about the manifest."""
        try:
            yield
        except FileNotFoundError as error:
            self.check_not_rewritten()
            raise InputError(f"{error}, but {MANIFEST} names it") from None

    def _open(self, shard: int) -> BinaryIO:
        with self.named(shard):
            return self.cache.open(self._tar(shard), self.kept)

    def _index_path(self, shard: int) -> Path:
        return self.cache.folder / self._index(shard).name

    def _index_content(self, shard: int) -> bytes:
        index = self._index(shard)
        with self.cache.open(index, self.kept) as file:
            content = file.read()
        if hashlib.sha256(content).hexdigest() == index.sha256:
            return content
        self.cache.remove_changed(index)
        with self.cache.open(index, self.kept) as file:
            return file.read()

    def _check_content(self, shard: int) -> None:
        self.refetch(shard)
