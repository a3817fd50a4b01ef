"""Makes the data module's loaders from its settings and the facts of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from autotimm.augmentation.custom import Transforms
from autotimm.augmentation.presets import Augmentation
from autotimm.coco import index
from autotimm.coco.index import Category
from autotimm.data import collate
from autotimm.data.load import Load
from autotimm.data.settings import DataSettings
from autotimm.streaming.dataset import SampleStream
from autotimm.streaming.loader import StreamLoader
from autotimm.streaming.repeats import Repeats
from autotimm.streaming.store import Source
from autotimm.structures import Preprocessing, World


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """The facts of a run that a loader depends on.

    Attributes:
        world: this rank and the number of ranks.
        on_gpu: whether the run uses a GPU.
        epoch: the epoch to begin with; 0 in evaluation.
        limit: returns the number of batches after which an epoch ends early; None in evaluation.
        same_batches: whether every epoch has the same batches (``overfit_batches``).
    """

    world: World
    on_gpu: bool
    epoch: int = 0
    limit: Callable[[], float] | None = None
    same_batches: bool = False


def training_run(trainer: Any) -> Run:
    """The run of a fit.

    Args:
        trainer: Lightning's; None for a run of this process alone.
    """
    run = evaluation_run(trainer)
    if trainer is None:
        return run
    return replace(
        run,
        epoch=trainer.current_epoch,  # not 0 if Lightning re-creates the loader during a fit
        limit=lambda: trainer.num_training_batches,
        same_batches=bool(trainer.overfit_batches),
    )


def evaluation_run(trainer: Any) -> Run:
    """The run of an evaluation or a prediction; see :func:`training_run` for the argument."""
    if trainer is None:
        return Run(world=World(), on_gpu=torch.cuda.is_available())
    return Run(
        world=World(trainer.global_rank, trainer.world_size),
        on_gpu=trainer.strategy.root_device.type == "cuda",
    )


def training_loader(
    settings: DataSettings,
    categories: list[Category],
    source: Source,
    wanted: Preprocessing,
    run: Run,
    repeats: Repeats | None = None,
) -> StreamLoader:
    """Makes a loader of shuffled, augmented batches.

    An incomplete last batch of an epoch is filled up with samples from the epoch's beginning.

    Args:
        settings: the data module's settings.
        categories: a label is a position in this list.
        source: reads the samples.
        wanted: how to preprocess images.
        run: the run that trains on the batches.
        repeats: how often an epoch has each image; None for once.
    """
    vary: Augmentation | Transforms = settings.augmentation
    if settings.custom_train_transforms is not None:  # an empty Compose counts as false
        vary = settings.custom_train_transforms
    stream = SampleStream(
        source,
        _load(settings, categories, wanted, vary),
        collate.collate,
        world=run.world,
        batch_size=settings.batch_size,
        seed=settings.seed,
        shuffle=not run.same_batches,
        canvases=settings.canvases,
        max_corrupt=settings.max_corrupt,
        sizes=settings.scales,
        paired=settings.copy_paste,
        repeats=repeats,
        # A user's own pipeline may have random state that threads must not share.
        threads=torch.get_num_threads() if isinstance(vary, Augmentation) else 1,
    )
    return _loader(stream, settings, run)


def evaluation_loader(
    settings: DataSettings,
    categories: list[Category],
    source: Source,
    wanted: Preprocessing,
    run: Run,
) -> StreamLoader:
    """Makes a loader of batches in the natural order; see :func:`training_loader` for arguments.

    The last batch is padded with repeated samples, so that all ranks have the same number.
    """
    stream = SampleStream(
        source,
        _load(settings, categories, wanted, None),
        collate.collate,
        world=run.world,
        batch_size=settings.val_batch_size,
        seed=settings.seed,
        pad=True,
        max_corrupt=settings.max_corrupt,
        threads=torch.get_num_threads(),
    )
    return _loader(stream, settings, run)


def _load(
    settings: DataSettings,
    categories: list[Category],
    wanted: Preprocessing,
    vary: Augmentation | Transforms | None,
) -> Load:
    return Load(
        labels=index.label_of(categories),
        canvas=settings.image_size,
        vary=vary,
        resize=settings.resize,
        fill=wanted.fill,
        with_masks=settings.masks and vary is not None,  # evaluation uses the masks in the target
        interpolation=wanted.interpolation,
        pixel_range=wanted.pixel_range,
    )


def _loader(stream: SampleStream, settings: DataSettings, run: Run) -> StreamLoader:
    return StreamLoader(
        stream,
        finish=collate.finish,
        num_workers=settings.num_workers,
        prefetch_factor=settings.prefetch_factor,
        persistent_workers=settings.persistent_workers,
        pin_memory=run.on_gpu if settings.pin_memory is None else settings.pin_memory,
        epoch=run.epoch,
        limit=run.limit,
    )
