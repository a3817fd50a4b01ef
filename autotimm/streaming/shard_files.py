"""The tars and indices of a split's shards, and those in a folder of this machine.

``cached_shards.py`` has those from a URL. Invariant: every tar that a caller gets has the size, and
every index the sha256, that the manifest says.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, ClassVar, TypeVar

import numpy as np

from autotimm.files import remote
from autotimm.files.atomic import read_file
from autotimm.files.urls import Location
from autotimm.format.index import index_bytes, read_index, read_pairs, scan_tar
from autotimm.format.manifest import Shard
from autotimm.structures import InputError

T = TypeVar("T")


class RewrittenError(InputError):
    """A run's shards were replaced by others while it read them."""


class ShardFiles(ABC):
    """The tars and indices of a split.

    Args:
        location: the folder or URL of the shards.
        shards: the shards of the split.
        authority: what states the sizes and hashes of the files, for messages.
        current: reads the shards of the split that the manifest names now.
    """

    _remedy: ClassVar[str]  # against a tar whose content has changed

    def __init__(
        self,
        location: Location,
        shards: list[Shard],
        authority: str,
        current: Callable[[], list[Shard]] | None = None,
    ) -> None:
        self._location, self._shards, self._authority = location, shards, authority
        self._current = current

    def check_not_rewritten(self) -> None:
        """Finds why a file is not what the manifest said when this run read it.

        Raises:
            InputError: autotimm-shard has written other shards into the folder since then. Their
                files are good, and none of them is to be deleted.
        """
        if self._current is None:
            return
        try:
            rewritten = self._current() != self._shards
        except (InputError, OSError):
            return  # the file's own error says more
        if rewritten:
            raise RewrittenError(
                f"{self._location}: its shards were written again while this run reads them: start "
                "again to train on the new ones, and write shards to be trained on later into "
                "another folder"
            )

    def where(self, shard: int) -> str:
        """The path or URL of a shard, without secrets, for messages."""
        return f"{str(self._location).rstrip('/')}/{self._shards[shard].name}"

    @abstractmethod
    def path(self, shard: int) -> Path:
        """The path of a shard's tar on this machine; downloads it if necessary."""

    @abstractmethod
    def refetch(self, shard: int) -> bool:
        """Discards a changed tar if it can be downloaded again; returns whether it did."""

    def open_tar(self, shard: int) -> BinaryIO:
        """Opens a tar.

        Raises:
            InputError: it cannot be read, or has another size than the manifest says.
        """
        try:
            file = self._open(shard)
        except OSError as error:
            self.check_not_rewritten()
            raise InputError(f"{self.where(shard)}: cannot be read: {error.strerror}") from None
        size, expected = os.fstat(file.fileno()).st_size, self._shards[shard].bytes
        if size != expected:
            file.close()
            self.check_not_rewritten()
            raise InputError(
                f"{self.where(shard)}: has {size} bytes, {self._authority} says {expected}"
            )
        return file

    def index(self, shard: int) -> np.ndarray:
        """The index of a shard, [samples] of INDEX_DTYPE; made from the tar if it is missing.

        Raises:
            InputError: the index, or a tar without one, is damaged or cannot be read.
        """
        return read_index(self._checked_content(shard), self._shards[shard])

    def pairs(self, shard: int) -> np.ndarray | None:
        """The categories of a shard's samples, of PAIR_DTYPE; None if its index has none.

        Raises:
            InputError: for the reasons given in ``index``.
        """
        return read_pairs(self._checked_content(shard), self._shards[shard])

    def _checked_content(self, shard: int) -> bytes:
        info, path = self._shards[shard], self._index_path(shard)
        try:
            content = self._index_content(shard)
        except FileNotFoundError:
            return self._index_of_tar(shard)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != info.index_sha256:
            self.check_not_rewritten()
            raise InputError(f"{path}: its content is not what {self._authority} says: delete it")
        return content

    def every(self, read: Callable[[int], T]) -> list[T]:
        """What ``index`` or ``pairs`` return for each shard."""
        return [read(shard) for shard in range(len(self._shards))]

    def verify(self) -> None:
        """Checks the sha256 of every tar, cached ones included.

        Raises:
            InputError: a tar is not what the manifest says.
        """
        for shard, info in enumerate(self._shards):
            path = self.path(shard)
            if remote.sha256_of(path) != info.sha256:
                self.check_not_rewritten()
                raise self._changed(path)

    def _changed(self, path: Path) -> InputError:
        return InputError(
            f"{path}: its content is not what {self._authority} says (sha256 differs): "
            f"{self._remedy}"
        )

    @abstractmethod
    def _open(self, shard: int) -> BinaryIO: ...

    @abstractmethod
    def _index_path(self, shard: int) -> Path: ...

    @abstractmethod
    def _index_content(self, shard: int) -> bytes: ...

    @abstractmethod
    def _check_content(self, shard: int) -> None:
        """Makes sure that the content of a tar is the original one, or raises an InputError."""

    def _index_of_tar(self, shard: int) -> bytes:
        try:
            # A new index has the checksums of the bytes as they are now, so these must be right.
            self._check_content(shard)
            with self.open_tar(shard) as file:
                tar = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise InputError(f"{self.where(shard)}: cannot be read: {error.strerror}") from None
        try:
            index, pairs = scan_tar(tar)
        except InputError as error:
            raise InputError(f"{self.where(shard)}: {error}") from None
        samples = self._shards[shard].samples
        if len(index) != samples:
            raise InputError(f"{self.where(shard)}: has {len(index)} samples, not {samples}")
        return index_bytes(index, pairs)


class LocalShardFiles(ShardFiles):
    """Shards in a folder of this machine.

    Args:
        folder: holds the tars.
        indices: the folder of the indices.
        location, shards, authority, current: see ``ShardFiles``.

    Raises:
        InputError: a tar is missing or does not have its size.
    """

    _remedy = "copy it again or run autotimm-shard again"

    def __init__(
        self,
        location: Location,
        shards: list[Shard],
        authority: str,
        folder: Path,
        indices: Path,
        current: Callable[[], list[Shard]] | None = None,
    ) -> None:
        super().__init__(location, shards, authority, current)
        self._folder, self._indices = folder, indices
        self._check_sizes()

    def path(self, shard: int) -> Path:
        """See ``ShardFiles``."""
        return self._folder / self._shards[shard].name

    def refetch(self, shard: int) -> bool:
        """See ``ShardFiles``."""
        return False

    def _check_sizes(self) -> None:
        for shard, info in enumerate(self._shards):
            path = self.path(shard)
            try:
                size = path.stat().st_size
            except OSError as error:
                raise InputError(
                    f"{path}: {self._authority} names it, but: {error.strerror}: copy it here or "
                    "run autotimm-shard again"
                ) from None
            if size != info.bytes:
                raise InputError(
                    f"{path}: has {size} bytes, {self._authority} says {info.bytes}: copy it again "
                    "or run autotimm-shard again"
                )

    def _open(self, shard: int) -> BinaryIO:
        return self.path(shard).open("rb")

    def _index_path(self, shard: int) -> Path:
        return self._indices / self._shards[shard].index

    def _index_content(self, shard: int) -> bytes:
        return read_file(self._index_path(shard))

    def _check_content(self, shard: int) -> None:
        path = self.path(shard)
        if remote.sha256_of(path) != self._shards[shard].sha256:
            self.check_not_rewritten()
            raise self._changed(path)
