"""The splits of a data set: opened once, which a stage uses, and whether they go together."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from autotimm.coco.index import Category
from autotimm.data.settings import DataSettings
from autotimm.files.urls import Location
from autotimm.streaming.layout import DataFolder, look
from autotimm.streaming.store import FolderSource, Source, open_source, split_names
from autotimm.structures import InputError


class Splits:
    """The splits of a folder or a URL, each opened at its first use.

    Args:
        location: of the data.
        cache_dir: as in :func:`autotimm.streaming.store.open_source`.
        cache_limit: likewise.
        warn: takes a line on what was left out of a split.
    """

    def __init__(
        self,
        location: Location,
        cache_dir: str | Path | None,
        cache_limit: int | None,
        warn: Callable[[str], None],
    ) -> None:
        self.location = location
        self._cache_dir, self._cache_limit, self._warn = cache_dir, cache_limit, warn
        self._sources: dict[str, Source] = {}

    @cached_property
    def _folder(self) -> DataFolder:
        return look(self.location)

    @cached_property
    def names(self) -> list[str]:
        """Of all splits that there are."""
        return split_names(self._folder)

    def source(self, split: str) -> Source:
        """The samples of a split.

        Raises:
            InputError: there is no such split, or it is damaged.
        """
        if split not in self._sources:
            limit = self._cache_limit
            source = open_source(self._folder, split, self._cache_dir, cache_limit=limit)
            remarks = [source.remark] if source.remark else []
            if source.problems.counts:
                found = "; ".join(source.problems.lines())
                if isinstance(source, FolderSource):
                    found += ". autotimm-shard counts odd annotations too"
                remarks.append(found)
            if remarks:
                self._warn(f"{self.location}, split {split!r}: {'; '.join(remarks)}")
            self._sources[split] = source
        return self._sources[split]

    def evaluated(self, stage: str, settings: DataSettings) -> str:
        """The split that "validate" or "test" evaluates on.

        Raises:
            InputError: there is none.
        """
        if stage == "test":
            if settings.test_split is not None:
                return settings.test_split
            if "test" in self.names:
                return "test"
        if settings.val_split is None:
            raise InputError(
                f"there is nothing to evaluate on: val_split is None, and {self.location} has no "
                "'test' split: set val_split or test_split"
            )
        return settings.val_split

    def check(self, stage: str | None, settings: DataSettings) -> list[str]:
        """Opens the splits of a stage ("fit", "validate", "test", "predict"; None for fit and
        validate), and returns their names.

        Raises:
            InputError: a split is missing or damaged, has categories that training has not, or has
                nothing to train on.
        """
        splits = [settings.train_split] if stage in ("fit", None) else []
        if stage in ("fit", "validate", None) and settings.val_split is not None:
            splits.append(settings.val_split)
        if stage in ("test", "predict"):
            splits.append(self.evaluated("test", settings))
        for split in splits:
            if split not in self.names:
                hint = "; val_split=None validates nothing" if split == settings.val_split else ""
                raise InputError(
                    f"{self.location}: no split {split!r}, only {', '.join(self.names)}{hint}"
                )
        if stage in ("fit", None):
            check_instances(self.source(settings.train_split), settings.train_split)
        for split in splits:
            source, training = self.source(split), self.source(settings.train_split)
            check_categories(source, training.categories, settings.train_split)
        return splits


def check_instances(source: Source, split: str) -> None:
    """Sees that there is something to train on in a split.

    Raises:
        InputError: every instance is a crowd, or there is none.
    """
    if not source.has_instances():
        raise InputError(
            f"{source.where(0)}: the {split!r} split has no instance that is not a crowd: there is "
            "nothing to train on"
        )


def check_categories(source: Source, training: list[Category], train_split: str) -> None:
    """Sees that a split has only categories of the training split, so that each has a label.

    Raises:
        InputError: it has another one.
    """
    known = {category.id: category.name for category in training}
    for category in source.categories:
        if known.get(category.id) != category.name:
            # autotimm-shard joins the categories of its splits, but not two names of one id.
            join = "" if category.id in known else ", or join them with autotimm-shard"
            raise InputError(
                f"{source.where(0)}: category {category.id} ({category.name!r}) is not in the "
                f"{train_split!r} split: give all splits the same categories{join}"
            )
