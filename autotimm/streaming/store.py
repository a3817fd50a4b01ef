"""Sources of samples: a COCO folder, a folder or URL of shards, or tars that another tool wrote.

``open_source`` detects which of them a location is. A source reads any sample by (shard, index), in
any order.
"""

from __future__ import annotations

import shlex
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autotimm.coco import layouts
from autotimm.coco.checks import Problems
from autotimm.coco.index import Category
from autotimm.coco.join import load_split
from autotimm.coco.remarks import lost_instances, untrained_and_ignored
from autotimm.coco.shared import shared_files
from autotimm.coco.split_names import same_split
from autotimm.files import remote
from autotimm.files.retry import Retry
from autotimm.files.urls import Location
from autotimm.format.manifest import MANIFEST
from autotimm.images.decode import DataError
from autotimm.streaming import foreign
from autotimm.streaming.layout import DataFolder, NamedFiles, detect_layout
from autotimm.streaming.pixel_range import sampled_range
from autotimm.streaming.shards import ShardSource, manifest_of
from autotimm.structures import InputError, PixelRange, Record, is_trained_on

__all__ = ["FolderSource", "ShardSource", "Source", "open_source", "split_names"]


class Source(Protocol):
    """The samples of a split, by shard and index.

    Attributes:
        categories: sorted by id.
        shard_sizes: [shards] int64, the number of samples of each.
        fingerprint: a hash that is equal only for the same samples in the same order.
        problems: what opening the source has left out or repaired; for shards only what misleads a
            training, because autotimm-shard has reported the rest when it wrote them.
        odd: everything odd that is known of the data: of a COCO folder ``problems``, of shards what
            their manifest says of the source.
        lacking: what evaluation would count and these data do not hold; mostly empty.
        remedy: what a user can do about samples that cannot be used.
        remark: anything else to report to the user, such as classes that no network learns; mostly
            empty.
    """

    categories: list[Category]
    shard_sizes: NDArray[np.int64]
    fingerprint: str
    problems: Problems
    odd: Problems
    lacking: str
    remedy: str
    remark: str

    def has_instances(self) -> bool:
        """Whether there is something to train on: neither a crowd nor to be ignored."""

    def lost_instances(self) -> str:
        """Says by kind why no instance can be used; empty where one can, or there were none."""

    def odd_annotations(self, images: int) -> Problems:
        """Counts what is odd in the annotations of up to this many images, evenly spread; for
        shards, what autotimm-shard counted when it wrote them."""

    def image_sizes(self) -> NDArray[np.int64]:
        """Returns [samples, 2], width and height of every image, shard after shard."""

    def image_categories(self, enough: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns which categories each image has instances of that are trained on, as pairs: the
        numbers of the images, shard after shard, and the ids of the categories. A category that
        ``enough`` images have may be missing from others. InputError if the data do not say it."""

    def read(self, shard: int, index: int) -> tuple[bytes | memoryview, Record]:
        """Returns the image file's bytes and the record of a sample; DataError if damaged."""

    def record(self, shard: int, index: int, problems: Problems | None = None) -> Record:
        """Returns the record alone, also of a damaged image; DataError if it is damaged itself.

        ``problems`` gets what is odd in its annotations, where ``odd`` does not know that already.
        """

    def pixel_range(self) -> PixelRange:
        """Returns what becomes black and white in images of more than 8 bits a channel, as the
        manifest has it or else as some of the images have it; None where these have no more."""

    def prefetch(self, shards: Iterable[int]) -> None:
        """Prepares for reading these shards next; may start downloads in the background."""

    def announce(self, steps: Iterator[list[tuple[int, int]]]) -> None:
        """Says what will be read, as shard and index: the samples of each step, in their order.

        The source may take any number of steps, to fetch samples ahead.
        """

    def where(self, shard: int) -> str:
        """Returns the name of a shard for messages."""


def open_source(
    data_dir: str | Path | Location | DataFolder,
    split: str,
    cache_dir: str | Path | None = None,
    verify: bool = False,
    cache_limit: int | None = None,
    retry: Retry | None = None,
    known: Sequence[Category] = (),
    whole_shards: bool = False,
) -> Source:
    """Opens a split of a folder or URL of shards, a folder of tars, or a COCO folder.

    Args:
        data_dir: the folder or URL, or the result of ``layout.detect_layout``.
        split: such as "train"; "val" means "valid" or "validation", too, where there is no "val".
        cache_dir: the folder for shards from a URL; by default in the user's cache folder.
        verify: check the sha256 of all shards first, which reads them all.
        cache_limit: bytes that the cache may take; None for no limit.
        retry: how long to try a download.
        known: for a COCO folder, the classes of its training split; see ``join.load_split``.
        whole_shards: from a URL, fetch whole shards instead of the parts with the samples.

    Raises:
        InputError: the folder or split does not exist, or is damaged.
    """
    data = detect_layout(data_dir)
    if data.folder is None or data.layout != "coco":
        return ShardSource(data, split, cache_dir, verify, retry, cache_limit, whole_shards)
    return FolderSource(_coco_split(data, split), _shell_words(data), split, known)


def split_names(data_dir: str | Path | DataFolder, retry: Retry | None = None) -> list[str]:
    """The names of the splits in a folder or URL of shards, a folder of tars, or a COCO folder.

    Raises:
        InputError: the location is none of them.
    """
    data = detect_layout(data_dir)
    if data.folder is None or data.layout == "shards":
        return list(manifest_of(data.location, retry or Retry()).splits)
    if data.layout == "tars":
        return list(foreign.split_tars(data.folder))
    return list(_coco_splits(data))


class FolderSource:
    """A split of a COCO folder, as one shard; ``read`` makes each record on demand.

    Args:
        split: what is read.
        words: what names it after ``autotimm-shard``, for a shell.
        asked: the name that it was asked for by.
        known: as for ``open_source``.
    """

    def __init__(
        self, split: layouts.Split, words: str, asked: str, known: Sequence[Category] = ()
    ) -> None:
        self._index = load_split(split, known=known)
        self._file = split.annotation_file
        self.problems = self._index.problems
        self.odd, self.lacking = self.problems, ""
        self.remark = untrained_and_ignored(self._index.untrained(), self._index.ignored())
        if split.name != asked:
            self.remark = "; ".join(
                filter(None, [f"it is called {split.name!r} there", self.remark])
            )
        self.categories = self._index.categories
        self.shard_sizes = np.array([len(self._index)], dtype=np.int64)
        self.fingerprint = remote.sha256_of(split.annotation_file)
        self.remedy = f"repair them (autotimm-shard {words} --dry-run checks them all)"

    def has_instances(self) -> bool:
        """See ``Source``; stops at the first such instance."""
        records = (self._index.record(i) for i in range(len(self._index)))
        return any(is_trained_on(a) for record in records for a in record["annotations"])

    def lost_instances(self) -> str:
        """See ``Source``; looks no further than the first one that can be used."""
        problems = Problems()
        for i in range(len(self._index)):
            if self._index.record(i, problems)["annotations"]:
                return ""
        return lost_instances(0, problems)

    def odd_annotations(self, images: int) -> Problems:
        """See ``Source``."""
        problems, count = Problems(), len(self._index)
        for k in range(min(images, count)):
            self._index.record(k * count // min(images, count), problems)
        return problems

    def shared(self, other: FolderSource, name: str) -> Problems:
        """Counts the images that another split of the folder, of this name, has too."""
        return shared_files(self._index, other._index, name)

    def image_sizes(self) -> NDArray[np.int64]:
        """See ``Source``."""
        return self._index.sizes()

    def image_categories(self, enough: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See ``Source``; it checks no more masks than it needs to, because they take the time."""
        images, categories = array("q"), array("q")
        counts: Counter[int] = Counter()
        common: set[int] = set()
        for i in range(len(self._index)):
            for id_ in sorted(self._index.trained_ids(i, common)):
                images.append(i)
                categories.append(id_)
                counts[id_] += 1
                if counts[id_] == enough:
                    common.add(id_)
        return np.frombuffer(images, np.int64), np.frombuffer(categories, np.int64)

    def read(self, shard: int, index: int) -> tuple[bytes, Record]:
        """See ``Source``."""
        path = self._index.image_path(index)
        try:
            return path.read_bytes(), self._index.record(index)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error

    def record(self, shard: int, index: int, problems: Problems | None = None) -> Record:
        """See ``Source``."""
        return self._index.record(index, problems)

    def pixel_range(self) -> PixelRange:
        """See ``Source``."""
        return sampled_range(self)

    def prefetch(self, shards: Iterable[int]) -> None:
        """See ``Source``."""

    def announce(self, steps: Iterator[list[tuple[int, int]]]) -> None:
        """See ``Source``."""

    def where(self, shard: int) -> str:
        """See ``Source``."""
        return str(self._file)


def _coco_splits(data: DataFolder) -> dict[str, layouts.Split]:
    if isinstance(data.location, NamedFiles):
        return {data.location.split.name: data.location.split}
    folder = data.folder
    assert folder is not None  # a URL is of shards
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    try:
        return layouts.find_splits(folder)
    except InputError as error:
        raise InputError(f"{error}; a folder of shards holds {MANIFEST}") from None


def _coco_split(data: DataFolder, split: str) -> layouts.Split:
    splits = _coco_splits(data)
    named = same_split(split, splits)
    if named is None:
        raise InputError(f"{data.folder}: no split {split!r}, only {', '.join(splits)}")
    return splits[named]


def _shell_words(data: DataFolder) -> str:
    if not isinstance(data.location, NamedFiles):
        return shlex.quote(str(data.folder))
    name, sources = data.location.split.name, data.location.split.sources
    words = [w for file, images in sources for w in ("--annotations", file, "--images", images)]
    return shlex.join([*map(str, words), "--splits", ",".join([name] * len(sources))])
