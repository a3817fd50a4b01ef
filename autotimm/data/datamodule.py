"""The data module: splits, augmentation and loaders, for any Lightning trainer.

Invariants: ``__init__`` refuses arguments that cannot be used, and ``setup`` data that cannot be
used, before any batch is made; a category has the same label in every split; every rank gets the
same number of batches; a fit's checkpoint contains the position of its training loader, and a
resumed fit continues there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from autotimm.augmentation import pipeline_checks
from autotimm.augmentation.custom import Transforms
from autotimm.augmentation.presets import Augmentation, augmentation_of
from autotimm.coco import index
from autotimm.coco.index import Category
from autotimm.data import options
from autotimm.data.loaders import (
    evaluation_loader,
    evaluation_run,
    training_loader,
    training_run,
)
from autotimm.data.normalize import Normalize
from autotimm.data.open_loaders import OpenLoaders
from autotimm.data.settings import AssignableSettings, DataSettings
from autotimm.data.splits import Splits
from autotimm.data.watch import StreamWatch
from autotimm.files.retry import Retry
from autotimm.files.units import byte_count
from autotimm.files.urls import Location, locate
from autotimm.images.depth import checked_range
from autotimm.plain import plain_arguments
from autotimm.streaming.loader import StreamLoader
from autotimm.streaming.repeats import Repeats
from autotimm.streaming.store import Source
from autotimm.structures import UPPER_BITS, InputError, Preprocessing


class InstanceSegmentationDataModule(AssignableSettings, LightningDataModule):
    """Batches from a COCO folder, or from a folder or URL of shards.

    In a COCO folder the categories of the training split define the labels; in shards those of all
    splits together, which autotimm-shard has joined.

    Args:
        data_dir: the folder or URL, of either kind. Tars that another tool wrote count as shards;
            the first run indexes them, and keeps the index in ``cache_dir``.
        image_size: side of the canvas in pixels, or height and width; rounded up to multiples of
            32.
        batch_size: images a step on each rank.
        num_workers: processes on each rank that decode; 0 decodes in the training process, with
            as many threads as PyTorch uses (one with ``custom_train_transforms``).
        augmentation_preset: "light", "default", "strong", "lsj", or an ``Augmentation`` (also as a
            dict of its fields, as in a config file); ``autotimm preview`` shows what each does.
        resize: "letterbox" keeps the aspect and pads, "stretch" fills the canvas.
        val_batch_size: images a step on each rank in evaluation; by default ``batch_size``.
        train_split: name of the split to train on.
        val_split: name of the split to validate on; None validates nothing.
        test_split: name of the split to test and predict on; by default "test" if there is one with
            annotations, else ``val_split``.
        mean: of R, G and B, where 1 is white, to normalise images with. By default that of the
            model (of its pretrained weights, or of its training), or ImageNet's without a model.
        std: of R, G and B, with the same default.
        interpolation: "bilinear" or "bicubic" resizing; by default that of the model, or bilinear
            without a model. Images that shrink to less than 0.7 are averaged over areas instead.
        pixel_range: the values that become black and white, the lower first, in images of more than
            8 bits a channel whose files do not declare their bits; by default that of the model's
            training, else what autotimm-shard found, or what some images of a COCO folder have.
        seed: of the order and the augmentation.
        masks: False leaves out the masks in training, for a model that finds boxes only; batches
            for evaluation have masks in ``target`` only.
        cache_dir: the folder for shards from a URL; by default in the user's cache folder.
        cache_limit: bytes that this folder may take, such as "200GB"; the least recently used
            shards make room. None for no limit.
        retry_minutes: how long to try a download again before it fails.
        whole_shards: from a URL, fetch whole shards instead of the parts with the samples: every
            node then fetches most of the data.
        persistent_workers: keep the workers from one epoch to the next.
        pin_memory: put batches into page-locked memory; by default if the trainer uses a GPU.
        prefetch_factor: batches that each worker makes ahead.
        custom_train_transforms: an albumentations ``Compose`` with ``bbox_params``, which augments
            training images instead of the preset; ``augmentation/custom.py`` explains how. As a
            flag: ``MODULE.NAME`` of a ``Compose`` in a Python file.
        aspect_buckets: group training images by shape. With True, every training step uses one of
            three canvases, that of image_size or a narrower one; a list of heights and widths gives
            the canvases besides that of image_size. No image becomes smaller. Not with
            ``custom_train_transforms``. Evaluation uses the canvas of image_size.
        copy_paste: the share of training samples that get objects of another sample pasted onto
            them; 0.5 or 1 goes well with "lsj". A second image is decoded for each. Not with
            ``custom_train_transforms``.
        multi_scale: draw a canvas for every training step, the same on every rank. With True, one
            of five from 0.6 of image_size to image_size; a list of sides, or of heights and widths,
            gives the canvases besides image_size. Not with ``aspect_buckets`` or
            ``custom_train_transforms``. Evaluation uses image_size.
        max_corrupt: the share of a rank's samples in an epoch that may be skipped because they
            cannot be used; if there are more, the run stops and lists them.
        repeat_threshold: the share of the training images below which a class is rare; images with
            a rare class come more often in an epoch, by LVIS's repeat factors
            (``streaming/repeats.py``), such as 0.001. None or 0 for each image once.

    Raises:
        InputError: an argument cannot be used.
    """

    @plain_arguments
    def __init__(
        self,
        data_dir: str | Path,
        image_size: int | tuple[int, int] = 640,
        batch_size: int = 4,
        num_workers: int = 4,
        augmentation_preset: str | dict[str, Any] | Augmentation = "default",
        resize: str = "letterbox",
        val_batch_size: int | None = None,
        train_split: str = "train",
        val_split: str | None = "val",
        test_split: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        interpolation: str | None = None,
        seed: int = 0,
        masks: bool = True,
        cache_dir: str | Path | None = None,
        cache_limit: int | str | None = None,
        persistent_workers: bool = True,
        pin_memory: bool | None = None,
        prefetch_factor: int = 2,
        custom_train_transforms: Transforms | None = None,
        aspect_buckets: bool | list[list[int]] = False,
        copy_paste: float = 0.0,
        multi_scale: bool | list[int | list[int]] = False,
        max_corrupt: float = 0.01,
        repeat_threshold: float | None = None,
        pixel_range: Sequence[float] | None = None,
        retry_minutes: float = 10.0,
        whole_shards: bool = False,
    ) -> None:
        super().__init__()
        location = locate(data_dir)
        if location.folder is not None and not location.folder.is_dir():
            raise InputError(f"data_dir: {location.folder}: no such folder")
        size = options.canvas(image_size)
        self.settings = DataSettings(
            location=location,
            image_size=size,
            batch_size=batch_size,
            val_batch_size=batch_size if val_batch_size is None else val_batch_size,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            seed=seed,
            augmentation=augmentation_of(augmentation_preset),
            resize=resize,
            canvases=options.canvases(aspect_buckets, size, resize),
            custom_train_transforms=custom_train_transforms,
            copy_paste=copy_paste,
            repeat_threshold=repeat_threshold,
            scales=options.scales(multi_scale, size),
            max_corrupt=max_corrupt,
            train_split=train_split,
            val_split=val_split,
            test_split=test_split,
            masks=masks,
            cache_dir=cache_dir,
            cache_limit=None if cache_limit is None else byte_count("cache_limit", cache_limit),
            retry_minutes=retry_minutes,
            whole_shards=whole_shards,
            persistent_workers=persistent_workers,
            pin_memory=pin_memory,
            mean=None if mean is None else options.three("mean", mean),
            std=None if std is None else options.three("std", std, above=0),
            interpolation=interpolation,
            pixel_range=None if pixel_range is None else checked_range("pixel_range", pixel_range),
        )
        self._loaders = OpenLoaders()
        self._normalize: Normalize | None = None  # made with the first batch

    @property
    def data_dir(self) -> str:
        """The folder or URL, as the user gave it."""
        return self.settings.location.given

    @data_dir.setter
    def data_dir(self, value: str | Path | Location) -> None:
        self.settings = replace(self.settings, location=locate(value))

    @property
    def preprocessing(self) -> Preprocessing:
        """How to preprocess images: by the arguments, and else as the trainer's model needs it."""
        model = getattr(self.trainer, "lightning_module", None)
        own = getattr(model, "preprocessing", None) or Preprocessing()
        if own.pixel_range == UPPER_BITS and not self.settings.pixel_range:
            self._splits.warn_of_upper_bits(self.settings.train_split)
        return self.settings.preprocessing(
            own, lambda: self._splits.pixel_range(self.settings.train_split)
        )

    @property
    def categories(self) -> list[Category]:
        """The categories of the training split, sorted by id; a label is a position in the list."""
        return self.source(self.settings.train_split).categories

    @property
    def class_names(self) -> list[str]:
        """The name of each label: its category's, followed by the id if several share the name."""
        return index.shown_names(self.categories)

    @property
    def num_classes(self) -> int:
        """The number of labels."""
        return len(self.categories)

    def repeats(self) -> Repeats | None:
        """How often an epoch has each training image, by ``repeat_threshold``; None for once.

        Raises:
            InputError: the data do not say which classes an image has.
        """
        return self._splits.repeats(self.settings)

    def source(self, split: str) -> Source:
        """The source of a split; the first call opens it, and warns about what it has left out.

        Args:
            split: its name, such as "train".

        Raises:
            InputError: there is no such split, or it is damaged.
        """
        return self._splits.source(split)

    def setup(self, stage: str | None = None) -> None:
        """Opens the splits of a stage: "fit", "validate", "test" or "predict"; None for "fit".

        Raises:
            InputError: a split is missing or damaged, has categories that the training split lacks,
                or has nothing to train on.
        """
        if self.trainer is not None:
            trainer: Any = self.trainer
            others = [c for c in trainer.callbacks if not isinstance(c, StreamWatch)]
            trainer.callbacks = [StreamWatch(self._loaders.by_role), *others]
        if stage in ("fit", None):
            self._loaders.begin_fit()
        self.check(stage)
        repeats = self.repeats() if stage in ("fit", None) else None
        if repeats is not None:
            rank_zero_info(repeats.summary())

    def check(self, stage: str | None = None) -> list[str]:
        """Checks the splits of a stage like ``setup``, without changing the trainer or loaders.

        Args:
            stage: as in ``setup``.

        Returns:
            The names of the splits.

        Raises:
            InputError: for the reasons given in ``setup``.
        """
        return self._splits.check(stage, self.settings)

    def train_dataloader(self) -> StreamLoader:
        """Shuffled, augmented batches of ``train_split``; see ``loaders.training_loader``."""
        wanted, own = self.preprocessing, self.settings.custom_train_transforms
        for remark in () if own is None else pipeline_checks.remarks(own, wanted.mean, wanted.std):
            rank_zero_warn(remark)
        source, run = self.source(self.settings.train_split), training_run(self.trainer)
        return self._loaders.keep_for_training(
            training_loader(self.settings, self.categories, source, wanted, run, self.repeats())
        )

    def val_dataloader(self) -> StreamLoader | list[StreamLoader]:
        """Batches of ``val_split`` for evaluation; an empty list if ``val_split`` is None."""
        validating = self.trainer is not None and self.trainer.state.fn == TrainerFn.VALIDATING
        if self.settings.val_split is None and not validating:
            return []
        return self._evaluation_loader("val", "validate")

    def test_dataloader(self) -> StreamLoader:
        """Batches of ``test_split`` for evaluation."""
        return self._evaluation_loader("test", "test")

    def predict_dataloader(self) -> StreamLoader:
        """The batches of ``test_dataloader``."""
        return self._evaluation_loader("predict", "test")

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Normalises the images on the device: uint8 to float32, by mean and std."""
        if batch["image"].dtype == torch.uint8:
            wanted = self.preprocessing
            if self._normalize is None or self._normalize.of != (wanted.mean, wanted.std):
                self._normalize = Normalize(wanted.mean, wanted.std)
            batch["image"] = self._normalize(batch["image"])
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The training loader's state, for a checkpoint; empty before there is a loader.

        Lightning saves the loader's state too, but does not restore it if a learning rate schedule
        has read ``estimated_stepping_batches``, for which Lightning creates the loader early.
        """
        return self._loaders.position()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes this fit's training loader continue from a state, now or when it is created.

        Lightning also calls this in evaluation and prediction, which ignore the state.

        Raises:
            InputError: the state is of other data or another seed; ``train_dataloader`` raises it
                if the loader does not exist yet.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        self._loaders.resume_at(state_dict)

    def teardown(self, stage: str | None = None) -> None:
        """Stops the workers; keeps the position in the data for a checkpoint after the fit."""
        self._loaders.close()

    @cached_property
    def _splits(self) -> Splits:
        at = self.settings
        return Splits(
            at.location,
            at.cache_dir,
            at.cache_limit,
            Retry(minutes=at.retry_minutes),
            at.whole_shards,
            lambda: self.settings.train_split,
            rank_zero_warn,
        )

    def _evaluation_loader(self, role: str, stage: str) -> StreamLoader:
        split, run = self._splits.evaluated(stage, self.settings), evaluation_run(self.trainer)
        categories, source = self.categories, self._splits.measured(split)
        if role != "predict":
            self._splits.warn_of_lvis(split)
        loader = evaluation_loader(self.settings, categories, source, self.preprocessing, run)
        self._loaders.keep(role, loader)
        return loader
