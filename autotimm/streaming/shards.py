"""A folder of shards, here or on a server, read by index.

Invariants: what the manifest says is checked before the first sample is read (a missing or cut-off
shard is found when the source is opened, not at step 40,000); what came over a network has had its
sha256 checked; what lies on the disk is checked by sample, as it is read; nothing is unpickled, and
every record is checked before it is handed on.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import mmap
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from autotimm.coco.checks import Problems
from autotimm.coco.index import Category
from autotimm.files import remote, urls
from autotimm.files.atomic import read_file
from autotimm.files.retry import Retry
from autotimm.format.index import INDEX_DTYPE, build_index, read_index
from autotimm.format.manifest import MANIFEST, Manifest, SplitInfo, read_manifest
from autotimm.format.record import checked_record, foreign_record
from autotimm.images.decode import DataError
from autotimm.streaming import foreign
from autotimm.streaming.cache import Cache, RemoteFile, default_folder
from autotimm.streaming.layout import DataFolder, look
from autotimm.streaming.open_shard import OpenShard
from autotimm.streaming.order import WINDOW
from autotimm.structures import InputError, Record

_OPEN = 64  # shards kept open: a window, and what workers that lag behind still read
_FETCHERS = 8  # indices that are fetched at a time: small files, where the way there takes longest


class ShardSource:
    """A split of a shard folder, read by index; from a URL, its shards are cached first.

    Args:
        data_dir: the folder or its URL, or what :func:`autotimm.streaming.layout.look` found there.
        split: such as "train".
        cache_dir: where shards from a URL are kept.
        verify: whether to check the sha256 of all shards first.
        retry: how downloads are tried.
        cache_limit: bytes that the cache may take; None for as many as there is room for.

    Raises:
        InputError: the manifest or a shard is missing or not what it should be, or the cache's
            limit is less than the shards that are read at a time.
    """

    def __init__(
        self,
        data_dir: str | Path | DataFolder,
        split: str,
        cache_dir: str | Path | None = None,
        verify: bool = False,
        retry: Retry | None = None,
        cache_limit: int | None = None,
    ) -> None:
        data = look(data_dir)
        self._location, self._folder = data.location, data.folder
        folder = urls.home_expanded(cache_dir) if cache_dir else default_folder()
        self._cache = Cache(folder, cache_limit, retry or Retry())
        self._indices, self._record = self._folder, checked_record
        self._source = MANIFEST  # of what is known of the shards
        self.remedy = "repair them (autotimm-shard --verify lists what is damaged in shards)"
        found: dict[str, Problems] = {}
        if self._folder is not None and data.layout == "tars":
            manifest, found = foreign.manifest_of_tars(self._folder, self._cache)
            self._indices, self._record = folder / foreign.FOLDER, foreign_record
            self._source = "its index"
            self.remedy = "repair these samples, or remove them from the tars"
        else:
            manifest = manifest_of(self._location, self._cache.retry)
        if split not in manifest.splits:
            raise InputError(
                f"{self._location}: no split {split!r}, only {', '.join(manifest.splits)}"
            )
        info = manifest.splits[split]
        self._shards = info.shards
        self._instances = info.instances - info.crowd
        self.problems = found.get(split, Problems())
        self.remark = foreign.remark(info, manifest.categories) if found else ""
        self.categories = sorted(manifest.categories, key=lambda c: c.id)
        self.shard_sizes = np.array([s.samples for s in info.shards], dtype=np.int64)
        self.fingerprint = _fingerprint(info, self.categories)
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._ahead: deque[tuple[int, frozenset[str]]] = deque()  # and what is not removed for it
        self._kept: frozenset[str] = frozenset()  # what the cache keeps for the present window
        self._thread: threading.Thread | None = None
        if self._folder is not None:
            self._check_sizes()
        else:
            self._check_limit()
        if verify:
            self.verify()

    def __getstate__(self) -> dict[str, Any]:  # for workers that are spawned rather than forked
        return self.__dict__ | {"_open": OrderedDict(), "_ahead": deque(), "_thread": None}

    def has_instances(self) -> bool:
        """See ``Source``."""
        return self._instances > 0

    def read(self, shard: int, index: int) -> tuple[memoryview, Record]:
        """See ``Source``."""
        image, text = self.raw(shard, index)
        return image, self._record(text, f"sample {index} of {self.where(shard)}")

    def record(self, shard: int, index: int) -> Record:
        """See ``Source``."""
        try:
            text = self._opened(shard).record(index)
        except OSError:
            text = None
        if text is None:  # which read() repairs or tells
            return self.read(shard, index)[1]
        return self._record(text, f"sample {index} of {self.where(shard)}")

    def raw(self, shard: int, index: int) -> tuple[memoryview, memoryview]:
        """The bytes of a sample's image and of its record, not parsed, both as their checksums say.

        Raises:
            DataError: a checksum differs.
        """
        found = self._checked(shard, index)
        if found is None and self._folder is None:
            tar, _ = self._files(shard)
            if self._cache.remove_changed(tar):  # a fault of this disk: the server's copy is whole
                self._open.pop(shard, None)
                found = self._checked(shard, index)
        if found is None:
            raise DataError(
                f"sample {index} of {self.where(shard)}: its bytes have changed since it was "
                "written"
            )
        return found

    def image_sizes(self) -> NDArray[np.int64]:
        """See ``Source``; of a URL, all indices are fetched for it, several at a time."""
        shards = range(len(self._shards))
        if self._folder is not None:  # where threads would wait for each other
            indices = [self._index(shard) for shard in shards]
        else:
            with ThreadPoolExecutor(_FETCHERS) as pool:
                indices = list(pool.map(self._index, shards))
        return np.concatenate(
            [np.stack([i["width"], i["height"]], axis=1).astype(np.int64) for i in indices]
        )

    def prefetch(self, shards: Iterable[int]) -> None:
        """Downloads these shards in the background; of no effect on a local folder."""
        if self._folder is not None:
            return
        plan = list(shards)
        names = [[file.name for file in self._files(shard)] for shard in plan]
        upto = [frozenset(itertools.chain(*names[:i])) for i in range(len(plan) + 1)]
        self._kept = upto[min(WINDOW, len(plan))]
        for shard in set(self._open) - set(plan):
            del self._open[shard]  # a file that the cache removes takes room until it is closed
        self._ahead.clear()
        self._ahead.extend(zip(plan, upto, strict=False))
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._fetch_ahead, daemon=True)
            self._thread.start()

    def where(self, shard: int) -> str:
        """See ``Source``."""
        return f"{str(self._location).rstrip('/')}/{self._shards[shard].name}"

    def path(self, shard: int) -> Path:
        """Where the tar of a shard lies on this machine, downloaded if need be."""
        if self._folder is not None:
            return self._folder / self._shards[shard].name
        with self._known(shard):
            return self._cache.fetch(self._files(shard)[0], self._kept)

    def verify(self) -> None:
        """Checks the sha256 of every shard, cached ones included.

        Raises:
            InputError: a shard is not what the manifest says.
        """
        for shard, info in enumerate(self._shards):
            path = self.path(shard)
            if remote.sha256_of(path) != info.sha256:
                raise self._changed(path)

    def _changed(self, path: Path) -> InputError:
        return InputError(
            f"{path}: its content is not what {self._source} says (sha256 differs): "
            + ("copy it again or run autotimm-shard again" if self._folder else "delete it")
        )

    def _check_sizes(self) -> None:
        for shard, info in enumerate(self._shards):
            path = self.path(shard)
            try:
                size = path.stat().st_size
            except OSError as error:
                raise InputError(
                    f"{path}: {self._source} names it, but: {error.strerror}: copy it here or run "
                    "autotimm-shard again"
                ) from None
            if size != info.bytes:
                raise InputError(
                    f"{path}: has {size} bytes, {self._source} says {info.bytes}: copy it again or "
                    "run autotimm-shard again"
                )

    def _check_limit(self) -> None:
        if self._cache.limit is None:
            return
        sizes = [
            sum(file.at_most for file in self._files(shard)) for shard in range(len(self._shards))
        ]
        needed = sum(sorted(sizes)[-WINDOW:])
        if self._cache.limit < needed:
            raise InputError(
                f"cache_limit is {self._cache.limit:,} bytes, but the shards of "
                f"{self._location} that are read at a time need {needed:,}: set it "
                "to that or more, or make smaller shards (autotimm-shard --max-shard-size)"
            )

    def _files(self, shard: int) -> tuple[RemoteFile, RemoteFile]:
        """A shard's tar and index on the server."""
        info = self._shards[shard]
        tar = remote.join(self._location.given, info.name)
        index = remote.join(self._location.given, info.index)
        largest = info.samples * INDEX_DTYPE.itemsize + 4096
        return (
            RemoteFile(tar, info.sha256, ".tar", info.bytes, info.bytes),
            RemoteFile(index, info.index_sha256, ".npy", largest),
        )

    @contextlib.contextmanager
    def _known(self, shard: int) -> Iterator[None]:
        """Says of a shard that the server does not have that it should."""
        try:
            yield
        except FileNotFoundError as error:
            raise InputError(f"{error}, but {MANIFEST} names it") from None

    def _checked(self, shard: int, index: int) -> tuple[memoryview, memoryview] | None:
        """Image and record of a sample; None if they are not what they were."""
        try:
            return self._opened(shard).sample(index)
        except OSError as error:
            raise DataError(
                f"sample {index} of {self.where(shard)}: cannot be read: {error.strerror}"
            ) from None

    def _opened(self, shard: int) -> OpenShard:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        rows = self._index(shard)  # first: it may fetch a tar anew that has changed in the cache
        with self._file(shard) as file:
            self._open[shard] = OpenShard(file, rows)
        while len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return self._open[shard]

    def _file(self, shard: int) -> BinaryIO:
        """Opens the tar, of which the size is right."""
        info = self._shards[shard]
        try:
            if self._folder is not None:
                file: BinaryIO = self.path(shard).open("rb")
            else:
                with self._known(shard):
                    file = self._cache.open(self._files(shard)[0], self._kept)
        except OSError as error:
            raise InputError(f"{self.where(shard)}: cannot be read: {error.strerror}") from None
        size = os.fstat(file.fileno()).st_size
        if size != info.bytes:
            file.close()
            raise InputError(
                f"{self.where(shard)}: has {size} bytes, {self._source} says {info.bytes}"
            )
        return file

    def _index(self, shard: int) -> np.ndarray:
        """The index beside the shard, or else one made from the tar."""
        info = self._shards[shard]
        path = (self._indices or self._cache.folder) / info.index
        try:
            content = read_file(path) if self._indices else self._cached_index(shard)
        except FileNotFoundError:
            return self._index_of_tar(shard)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != info.index_sha256:
            raise InputError(f"{path}: its content is not what {self._source} says: delete it")
        return read_index(content, info)

    def _cached_index(self, shard: int) -> bytes:
        _, index = self._files(shard)
        with self._cache.open(index, self._kept) as file:
            content = file.read()
        if hashlib.sha256(content).hexdigest() == index.sha256:
            return content
        self._cache.remove_changed(index)
        with self._cache.open(index, self._kept) as file:
            return file.read()

    def _index_of_tar(self, shard: int) -> np.ndarray:
        # Its checksums would be those of whatever bytes are there: these have to be the right ones.
        try:
            if self._folder is None:
                self._cache.remove_changed(self._files(shard)[0])
            elif remote.sha256_of(self.path(shard)) != self._shards[shard].sha256:
                raise self._changed(self.path(shard))
            with self._file(shard) as file:
                tar = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise InputError(f"{self.where(shard)}: cannot be read: {error.strerror}") from None
        try:
            index = build_index(tar)
        except InputError as error:
            raise InputError(f"{self.where(shard)}: {error}") from None
        samples = self._shards[shard].samples
        if len(index) != samples:
            raise InputError(f"{self.where(shard)}: has {len(index)} samples, not {samples}")
        return index

    def _fetch_ahead(self) -> None:
        while self._ahead:
            try:
                shard, keep = self._ahead.popleft()
            except IndexError:  # the plan was changed meanwhile
                continue
            tar, index = self._files(shard)
            try:
                if not self._cache.fetch_ahead(tar, keep):
                    return
                with contextlib.suppress(FileNotFoundError):  # it is made from the tar then
                    self._cache.fetch_ahead(index, keep)
            except (InputError, FileNotFoundError):
                return  # the reader meets it again, and raises it with a traceback of its own


def manifest_of(location: urls.Location, retry: Retry) -> Manifest:
    """The manifest of a folder or URL of shards; InputError without one."""
    if location.folder is not None:
        return read_manifest(location.folder)
    url = remote.join(location.given, MANIFEST)
    try:
        return read_manifest(remote.read_bytes(url, retry), urls.shown(url))
    except FileNotFoundError as error:
        raise InputError(
            f"{error}: {location} is not a folder of shards as autotimm-shard makes "
            "them; copy shards of others to a disk, where they are read without it"
        ) from None


def _fingerprint(info: SplitInfo, categories: list[Category]) -> str:
    content = [[s.sha256, s.samples] for s in info.shards], [[c.id, c.name] for c in categories]
    return hashlib.sha256(orjson.dumps(content)).hexdigest()
