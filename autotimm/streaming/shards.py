"""A source that reads a split of shards, from a folder or a URL, by index.

Invariants: the source checks the sizes of local shards when it is opened, so that a missing or
truncated shard is found before training and not at step 40,000; the cache checks the sha256 of
every download; reading a sample compares its checksums; nothing is unpickled, and every
record is checked before a caller gets it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from autotimm.coco import boxes
from autotimm.coco.checks import Problems
from autotimm.coco.index import Category
from autotimm.coco.remarks import lost_instances, untrained_and_ignored
from autotimm.coco.shared import SHARED
from autotimm.coco.split_names import same_split
from autotimm.files import remote, urls
from autotimm.files.retry import Retry
from autotimm.format.manifest import MANIFEST, Manifest, Shard, SplitInfo, lacking, untrained_names
from autotimm.format.manifest_file import read_manifest
from autotimm.format.record import checked_record, foreign_record
from autotimm.images.decode import DataError
from autotimm.streaming import foreign
from autotimm.streaming.by_ranges import ByRanges
from autotimm.streaming.cache import Cache, default_folder
from autotimm.streaming.cached_shards import CachedShardFiles
from autotimm.streaming.layout import DataFolder, detect_layout
from autotimm.streaming.open_shard import OpenShard
from autotimm.streaming.pixel_range import sampled_range
from autotimm.streaming.shard_files import LocalShardFiles
from autotimm.streaming.upcoming import Place
from autotimm.structures import InputError, PixelRange, Record

_OPEN = 64  # shards kept open: a window, and an earlier one that slow workers still read


class ShardSource:
    """A split of shards, read by index; shards from a URL go through the cache.

    Args:
        data_dir: the folder or URL, or the result of ``layout.detect_layout``.
        split: such as "train".
        cache_dir: the folder for shards from a URL; by default in the user's cache folder.
        verify: check the sha256 of all shards first, which reads them all.
        retry: how long to try a download.
        cache_limit: bytes that the cache may take; None for no limit.
        whole_shards: from a URL, fetch whole shards instead of the parts with the samples.

    Raises:
        InputError: the manifest or a shard is missing or damaged, there is no such split, or the
            cache's limit is less than a window of shards takes.
    """

    def __init__(
        self,
        data_dir: str | Path | DataFolder,
        split: str,
        cache_dir: str | Path | None = None,
        verify: bool = False,
        retry: Retry | None = None,
        cache_limit: int | None = None,
        whole_shards: bool = False,
    ) -> None:
        data = detect_layout(data_dir)
        location, folder = data.location, data.folder
        cache_folder = urls.home_expanded(cache_dir) if cache_dir else default_folder()
        cache = Cache(cache_folder, cache_limit, retry or Retry())
        authority, self._parse = MANIFEST, checked_record
        self.remedy = "repair them (autotimm-shard --verify lists what is damaged in shards)"
        found: dict[str, Problems] = {}
        if folder is not None and data.layout == "tars":
            manifest, found = foreign.manifest_of_tars(folder, cache)
            known = frozenset(one.id for one in manifest.categories)
            authority, self._parse = "its index", partial(foreign_record, known=known)
            self.remedy = "repair these samples, or remove them from the tars"
        else:
            manifest = manifest_of(location, cache.retry)
        named = same_split(split, manifest.splits)
        if named is None:
            raise InputError(f"{location}: no split {split!r}, only {', '.join(manifest.splits)}")
        info = manifest.splits[named]
        self._trained_on = info.instances - info.crowd - info.ignored
        self._instances, self._counted = info.instances, Problems()
        for kind, count in info.problems.items():
            self._counted.count(kind, count)
        self.problems = found.get(named) or self._counted.of_kind((boxes.FAR, SHARED))
        self.odd = found.get(named) or self._counted
        self.lacking = "" if found else lacking(manifest, named)
        self.remark = untrained_and_ignored(
            untrained_names(info, manifest.categories), info.ignored
        )
        if found:
            self.remark = foreign.remark(info, manifest.categories)
        if named != split:
            self.remark = "; ".join(filter(None, [f"it is called {named!r} there", self.remark]))
        self._pixel_range = manifest.pixel_range
        self._ranged = not found  # tars of others have no manifest that says it
        self.categories = sorted(manifest.categories, key=lambda c: c.id)
        self.shard_sizes = np.array([s.samples for s in info.shards], dtype=np.int64)
        self.fingerprint = _fingerprint(info, self.categories)
        self.files: LocalShardFiles | CachedShardFiles
        if folder is None:
            current = partial(_shards_now, location, cache.retry, named)
            self.files = CachedShardFiles(location, info.shards, authority, cache, current)
        elif data.layout == "tars":
            indices = cache_folder / foreign.FOLDER
            self.files = LocalShardFiles(location, info.shards, authority, folder, indices)
        else:
            current = partial(_shards_now, location, cache.retry, named)
            self.files = LocalShardFiles(location, info.shards, authority, folder, folder, current)
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._ranges = None
        if isinstance(self.files, CachedShardFiles) and not whole_shards:
            self._ranges = ByRanges(self.files)
        if verify:
            self.verify()

    def __getstate__(self) -> dict[str, Any]:  # for workers that are spawned rather than forked
        return self.__dict__ | {"_open": OrderedDict()}

    def has_instances(self) -> bool:
        """See ``Source``."""
        return self._trained_on > 0

    def lost_instances(self) -> str:
        """See ``Source``."""
        return lost_instances(self._instances, self._counted)

    def odd_annotations(self, images: int) -> Problems:
        """See ``Source``."""
        return self._counted

    def read(self, shard: int, index: int) -> tuple[memoryview, Record]:
        """See ``Source``."""
        image, text = self.raw(shard, index)
        return image, self._parse(text, f"sample {index} of {self.where(shard)}")

    def record(self, shard: int, index: int, problems: Problems | None = None) -> Record:
        """See ``Source``."""
        text = None
        if (ranges := self._by_ranges(shard)) is not None:
            text = ranges.record(shard, index)
        if ranges is None or ranges.off:
            with contextlib.suppress(OSError):
                text = self._opened(shard).record(index)
        if text is None:  # read() downloads the shard again, or raises an error
            return self.read(shard, index)[1]
        return self._parse(text, f"sample {index} of {self.where(shard)}")

    def raw(self, shard: int, index: int) -> tuple[memoryview, memoryview]:
        """Reads the bytes of a sample's image and record without parsing them.

        Raises:
            DataError: a checksum differs, also after downloading the shard again.
        """
        found = None
        if (ranges := self._by_ranges(shard)) is not None:
            found = ranges.sample(shard, index)
        if ranges is None or ranges.off:
            found = self._checked(shard, index)
            if found is None and self.files.refetch(shard):
                self._open.pop(shard, None)
                found = self._checked(shard, index)
        if found is None:
            self.files.check_not_rewritten()
            raise DataError(
                f"sample {index} of {self.where(shard)}: its bytes have changed since it was "
                "written"
            )
        return found

    def pixel_range(self) -> PixelRange:
        """See ``Source``."""
        return self._pixel_range if self._ranged else sampled_range(self)

    def image_sizes(self) -> NDArray[np.int64]:
        """See ``Source``; for a URL, it downloads all indices, several at a time."""
        return np.concatenate(
            [
                np.stack([index["width"], index["height"]], axis=1).astype(np.int64)
                for index in self.files.every(self.files.index)
            ]
        )

    def image_categories(self, enough: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See ``Source``; for a URL, it downloads all indices, several at a time."""
        found = self.files.every(self.files.pairs)
        known = [pairs for pairs in found if pairs is not None]
        if len(known) < len(found):
            raise InputError(
                f"{self.where(0)}: these shards are of an older version, whose indices do not say "
                "which classes an image has: run autotimm-shard again (--overwrite), or leave "
                "data.repeat_threshold out"
            )
        starts = np.cumsum(self.shard_sizes) - self.shard_sizes
        samples = [
            pairs["sample"] + start  # int64
            for pairs, start in zip(known, starts, strict=True)
        ]
        return np.concatenate(samples), np.concatenate([pairs["category_id"] for pairs in known])

    def prefetch(self, shards: Iterable[int]) -> None:
        """Prepares for a window; does nothing for a local folder.

        From a URL it downloads in the background: the shards, or their indices if the server sends
        ranges of them.
        """
        if isinstance(self.files, LocalShardFiles):
            return
        plan = list(shards)
        for shard in set(self._open) - set(plan):
            del self._open[shard]  # the disk frees a file that the cache removes once it is closed
        (self.files if self._ranges is None else self._ranges).prefetch(plan)

    def announce(self, steps: Iterator[list[Place]]) -> None:
        """See ``Source``; does nothing for a local folder."""
        if self._ranges is not None:
            self._ranges.announce(steps)

    def where(self, shard: int) -> str:
        """See ``Source``."""
        return self.files.where(shard)

    def path(self, shard: int) -> Path:
        """The path of a shard's tar on this machine; downloads it if necessary."""
        return self.files.path(shard)

    def verify(self) -> None:
        """Checks the sha256 of every tar, cached ones included.

        Raises:
            InputError: a tar is not what the manifest says.
        """
        self.files.verify()

    def _by_ranges(self, shard: int) -> ByRanges | None:
        """What reads a shard by ranges; None where the tar is read, which is, or will be, here."""
        if self._ranges is None or shard in self._open or not self._ranges.reads(shard):
            return None
        return self._ranges

    def _checked(self, shard: int, index: int) -> tuple[memoryview, memoryview] | None:
        """The image and record of a sample; None if a checksum differs."""
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
        rows = self.files.index(shard)  # before the tar, which this may download again
        with self.files.open_tar(shard) as file:
            self._open[shard] = OpenShard(file, rows)
        while len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return self._open[shard]


def manifest_of(location: urls.Location, retry: Retry) -> Manifest:
    """Reads the manifest of a folder or URL of shards.

    Raises:
        InputError: there is none, or it is damaged.
    """
    if location.folder is not None:
        return read_manifest(location.folder)
    url = remote.join(location.given, MANIFEST)
    try:
        return read_manifest(remote.read_bytes(url, retry), urls.shown(url))
    except FileNotFoundError as error:
        raise InputError(
            f"{error}: {location} is not a folder of shards that autotimm-shard has "
            "written; copy another tool's tars to a local folder, which needs no manifest"
        ) from None


def _shards_now(location: urls.Location, retry: Retry, split: str) -> list[Shard]:
    """The shards of a split that the manifest names now; none if it has no such split."""
    split_now = manifest_of(location, retry).splits.get(split)
    return split_now.shards if split_now else []


def _fingerprint(info: SplitInfo, categories: list[Category]) -> str:
    content = [[s.sha256, s.samples] for s in info.shards], [[c.id, c.name] for c in categories]
    return hashlib.sha256(orjson.dumps(content)).hexdigest()
