"""The splits of a data set: opens each once, selects those of a stage, and checks their classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from autotimm.coco import boxes
from autotimm.coco.index import Category
from autotimm.coco.split_names import same_split
from autotimm.data.settings import DataSettings
from autotimm.data.split_checks import (
    check_categories,
    check_instances,
    first_is_deep,
    is_federated,
)
from autotimm.files.retry import Retry
from autotimm.files.urls import Location
from autotimm.images.depths import shown
from autotimm.streaming.layout import DataFolder, detect_layout
from autotimm.streaming.pixel_range import sampled_depths
from autotimm.streaming.repeats import Repeats, repeat_factors
from autotimm.streaming.store import FolderSource, Source, open_source, split_names
from autotimm.structures import UPPER_BITS, InputError, PixelRange

_LOOKED_AT = 200  # images, for boxes that are far from their masks: a convention shows in a few


class Splits:
    """The splits of a folder or URL, each opened at its first use.

    Args:
        location: of the data.
        cache_dir: see :func:`autotimm.streaming.store.open_source`.
        cache_limit: see :func:`autotimm.streaming.store.open_source`.
        retry: how long to try a download.
        whole_shards: see :func:`autotimm.streaming.store.open_source`.
        train_split: returns the name of the split whose classes are the labels.
        warn: gets a line about what opening a split has left out.
    """

    def __init__(
        self,
        location: Location,
        cache_dir: str | Path | None,
        cache_limit: int | None,
        retry: Retry,
        whole_shards: bool,
        train_split: Callable[[], str],
        warn: Callable[[str], None],
    ) -> None:
        self.location = location
        self._cache_dir, self._cache_limit, self._warn = cache_dir, cache_limit, warn
        self._retry, self._whole_shards, self._train_split = retry, whole_shards, train_split
        self._sources: dict[str, Source] = {}
        self._warned_of_model = False  # that it keeps the upper bits
        self._warned_empty: set[str] = set()  # splits without an instance
        self._warned_shared: set[str] = set()  # splits
        self._warned_of_lvis: set[str] = set()  # splits
        self._warned_lacking: set[str] = set()  # splits that lack something for evaluation
        self._ranges: dict[str, PixelRange] = {}
        self._repeats: dict[tuple[str, float], Repeats] = {}  # by split and threshold

    @cached_property
    def _folder(self) -> DataFolder:
        return detect_layout(self.location)

    @cached_property
    def names(self) -> list[str]:
        """The names of all splits."""
        return split_names(self._folder, self._retry)

    def source(self, split: str) -> Source:
        """The source of a split, which may have another usual name: ``valid`` for ``val``.

        Raises:
            InputError: there is no such split, or it is damaged.
        """
        if split not in self._sources:
            source = open_source(
                self._folder,
                split,
                self._cache_dir,
                cache_limit=self._cache_limit,
                retry=self._retry,
                known=self._known(split),
                whole_shards=self._whole_shards,
            )
            remarks = [source.remark] if source.remark else []
            problems = source.problems.lines()
            if isinstance(source, FolderSource):
                problems += source.odd_annotations(_LOOKED_AT).of_kind(boxes.FAR).lines()
            if problems:
                found = "; ".join(problems)
                if isinstance(source, FolderSource):
                    found += ". autotimm-shard also counts problems in annotations"
                remarks.append(found)
            if remarks:
                self._warn(f"{self.location}, split {split!r}: {'; '.join(remarks)}")
            self._sources[split] = source
        return self._sources[split]

    def _known(self, split: str) -> Sequence[Category]:
        """The classes whose ids a split of a COCO folder takes; of shards, all splits have them."""
        training = same_split(self._train_split(), self.names)
        if self._folder.layout != "coco" or training in (None, same_split(split, self.names)):
            return ()
        return self.source(self._train_split()).categories

    def measured(self, split: str) -> Source:
        """The source of a split to evaluate on; warns, once, of what it lacks for that."""
        source = self.source(split)
        if source.lacking and split not in self._warned_lacking:
            self._warned_lacking.add(split)
            self._warn(f"{self.location}, split {split!r}: {source.lacking}")
        return source

    def _warn_of_shared(self, splits: Sequence[str]) -> None:
        """Warns, once, of images that a split of a COCO folder shares with the first one; shards
        say it themselves."""
        for split in splits[1:]:
            first, source = self.source(splits[0]), self.source(split)
            if split in self._warned_shared or first.where(0) == source.where(0):
                continue
            self._warned_shared.add(split)
            if isinstance(first, FolderSource) and isinstance(source, FolderSource):
                for line in source.shared(first, splits[0]).lines():
                    self._warn(f"{self.location}, split {split!r}: {line}")

    def _warn_of_nothing(self, split: str) -> None:
        """Warns, once, if validation has nothing to find."""
        if split not in self._warned_empty:
            self._warned_empty.add(split)
            if not self.source(split).has_instances():
                self._warn(
                    f"{self.location}, split {split!r}: no instance that is not a crowd: its AP "
                    "is -1 in every epoch; val_split=None (--data.val_split null) validates "
                    "nothing"
                )

    def warn_of_lvis(self, split: str) -> None:
        """Warns, once, where metrics of training go by another rule than ``autotimm evaluate``."""
        if split in self._warned_of_lvis:
            return
        self._warned_of_lvis.add(split)
        source = self.source(split)
        if int(source.shard_sizes.sum()) and is_federated(source):
            self._warn(
                f"{self.location}, split {split!r}: its images say which categories were looked "
                "for (neg_category_ids): autotimm evaluate measures them by LVIS' rule, but the "
                "metrics of training (such as val/ap) by COCO's, which counts what is found of "
                "other categories as wrong"
            )

    def repeats(self, settings: DataSettings) -> Repeats | None:
        """How often an epoch has each training image; None for once.

        Raises:
            InputError: the data do not say which classes an image has.
        """
        split, threshold = settings.train_split, settings.repeat_threshold
        if not threshold:
            return None
        if (split, threshold) not in self._repeats:
            source = self.source(split)
            images = int(source.shard_sizes.sum())
            pairs = source.image_categories(enough=int(threshold * images) + 1)
            factors = repeat_factors(images, *pairs, threshold)
            self._repeats[split, threshold] = Repeats(factors, threshold)
        return self._repeats[split, threshold]

    def pixel_range(self, split: str) -> PixelRange:
        """What becomes black and white in a split's images of more than 8 bits; warns of it, at the
        first call, if autotimm-shard has not done so.

        Raises:
            InputError: as in :meth:`source`.
        """
        if split not in self._ranges:
            source = self.source(split)
            if self._folder.layout != "shards":
                return self._sampled(split, source)
            found = self._ranges[split] = source.pixel_range()
            local = self.location.folder is not None
            if found == UPPER_BITS and local and first_is_deep(source):
                self._warn(
                    f"{self.location}, split {split!r}: images of more than 8 bits a channel keep "
                    "the upper 8 of 16, as an older autotimm-shard wrote these shards: run it "
                    "again with --overwrite, or set pixel_range"
                )
        return self._ranges[split]

    def _sampled(self, split: str, source: Source) -> PixelRange:
        """The range of some images, for data whose range autotimm-shard has not found."""
        depths, looked_at = sampled_depths(source)
        found = self._ranges[split] = depths.pixel_range()
        if found is not None:
            count = int(source.shard_sizes.sum())
            remarks = [
                f"{self.location}, split {split!r}: images of more than 8 bits a channel: "
                f"{shown(found)} become 0 to 255, as found in {looked_at:,} of its {count:,} "
                "images; pixel_range sets other values, and autotimm-shard looks at all",
                depths.stretched(),
            ]
            self._warn("; ".join(filter(None, remarks)))
        return found

    def warn_of_upper_bits(self, split: str) -> None:
        """Warns, once, where a model of an older version keeps the upper bits of these images."""
        if not self._warned_of_model:
            self._warned_of_model = True
            if first_is_deep(self.source(split)):
                self._warn(
                    f"{self.location}, split {split!r}: images of more than 8 bits a channel keep "
                    "the upper 8 of 16, as the checkpoint is of an older version, which kept no "
                    "range; pixel_range (--pixel-range LOW,HIGH) sets other values"
                )

    def evaluated(self, stage: str, settings: DataSettings) -> str:
        """The name of the split that "validate" or "test" evaluates on.

        Raises:
            InputError: there is none.
        """
        if stage == "test":
            if settings.test_split is not None:
                return settings.test_split
            if same_split("test", self.names):
                return "test"
        if settings.val_split is None:
            raise InputError(
                f"there is nothing to evaluate on: val_split is None, and {self.location} has no "
                "'test' split: set val_split or test_split"
            )
        return settings.val_split

    def check(self, stage: str | None, settings: DataSettings) -> list[str]:
        """Opens and checks the splits of a stage.

        Args:
            stage: "fit", "validate", "test" or "predict"; None for "fit".
            settings: the data module's settings.

        Returns:
            The names of the splits.

        Raises:
            InputError: a split is missing or damaged, has categories that the training split lacks,
                or has nothing to train on.
        """
        splits = [settings.train_split] if stage in ("fit", None) else []
        if stage in ("fit", "validate", None) and settings.val_split is not None:
            splits.append(settings.val_split)
        if stage in ("test", "predict"):
            splits.append(self.evaluated("test", settings))
        for split in splits:
            if same_split(split, self.names) is None:
                none = "; val_split=None (--data.val_split null) validates nothing"
                hint = none if split == settings.val_split else ""
                raise InputError(
                    f"{self.location}: no split {split!r}, only {', '.join(self.names)}{hint}"
                )
        if stage in ("fit", None):
            for split in splits:
                lost = self.source(split).lost_instances()
                if lost:
                    raise InputError(f"{self.source(split).where(0)}: split {split!r}: {lost}")
            check_instances(self.source(settings.train_split), settings.train_split)
            self.repeats(settings)
            for split in splits[1:]:
                self._warn_of_nothing(split)
        self._warn_of_shared(splits)
        for split in splits:
            source, training = self.source(split), self.source(settings.train_split)
            check_categories(source, training.categories, settings.train_split)
        return splits
