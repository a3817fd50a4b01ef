"""The report of a rank for the check of the set-up: packages, settings, data, device, checkpoint.

Values that have to be the same on all ranks become short texts, with names for messages. Errors
become part of the report too, because the other ranks wait for it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
)
from lightning.pytorch.utilities import rank_zero_warn

import autotimm
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.distributed.rendezvous import host_name
from autotimm.files import urls
from autotimm.images.decode import DataError
from autotimm.setup import resources
from autotimm.streaming.order import EpochOrder, batch_positions
from autotimm.streaming.store import Source
from autotimm.structures import InputError, World

SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)
"""Strategies in which every rank writes a part of each checkpoint."""
_LONGEST = 60  # the most characters of a value in a message
_TRAINER = (
    "precision",
    "accumulate_grad_batches",
    "max_epochs",
    "max_steps",
    "limit_train_batches",
    "limit_val_batches",
    "check_val_every_n_epoch",
    "val_check_interval",
    "gradient_clip_val",
)
_DATA = (
    "batch_size",
    "val_batch_size",
    "image_size",
    "canvases",
    "resize",
    "preprocessing",
    "masks",
    "seed",
    "max_corrupt",
    "augmentation",
    "copy_paste",
    "repeat_threshold",
    "scales",
    "train_split",
    "val_split",
    "test_split",
)


class Report(TypedDict, total=False):
    """What a rank reports about itself. A report with a ``problem`` has only this and ``host``.

    Attributes:
        host: the node.
        agent: the torchrun process that has started the rank; "" for none.
        problem: the reason why the rank cannot continue.
        warning: a warning to print.
        same: values that have to be the same on all ranks, by kind and name.
        gpu: the identity of the rank's GPU, which no other rank may use; absent on a CPU.
        gpu_name: the model of the GPU.
        probes: files that the first rank has written into the folders for checkpoints.
    """

    host: str
    agent: str
    problem: str
    warning: str
    same: dict[str, dict[str, str]]
    gpu: str
    gpu_name: str
    probes: list[str]


def make_report(
    trainer: Trainer,
    model: LightningModule,
    ckpt_path: Any,
    stack: contextlib.ExitStack,
    prepare: Callable[[], object] | None = None,
) -> tuple[Report, Exception | None]:
    """Make the report of this rank.

    Args:
        trainer: which is about to start.
        model: of the run.
        ckpt_path: the checkpoint to resume from, or None.
        stack: keeps the probes in place until the other ranks have seen them.
        prepare: changes the model first.

    Returns:
        The report, and the error behind its problem or None.
    """
    report = Report(host=host_name())
    try:
        if prepare is not None:
            prepare()
        if trainer.is_global_zero:
            least = resources.weight_bytes(model)
            folders = resources.checkpoint_folders(trainer)
            put = [stack.enter_context(resources.probe(one, least)) for one in folders]
            report["probes"] = [one for one in put if one]
        device = trainer.strategy.root_device
        resources.check_precision(str(trainer.precision), device)
        resources.check_threads(device)
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            report["gpu"] = f"{properties.uuid} of {report['host']}"
            report["gpu_name"] = properties.name
        report["same"] = {
            "packages": packages(),
            "settings": settings(trainer, model),
            "data": data(trainer, ckpt_path),
            "checkpoint": checkpoint(ckpt_path),
        }
    except Exception as error:
        known = isinstance(error, InputError | OSError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        return Report(host=report["host"], problem=text), error
    return report, None


def check_shared_folders(trainer: Trainer, probes: Sequence[str]) -> Report:
    """Check that this rank sees the probes that the first rank has written."""
    report = Report(host=host_name())
    unseen = [str(Path(probe).parent) for probe in probes if not Path(probe).exists()]
    if unseen:
        where = f"{', '.join(unseen)} is not the folder that the first rank sees"
        way = "give a trainer.default_root_dir that all nodes share"
        if isinstance(trainer.strategy, SHARDED):
            report["problem"] = f"{where}, and every rank writes a part of each checkpoint: {way}"
        else:
            report["warning"] = f"{where}: a run cannot go on from its checkpoints there: {way}"
    return report


@functools.cache
def packages() -> dict[str, str]:
    """Versions of the packages that compute, with a digest of this package's files."""
    files = sorted(Path(autotimm.__file__).parent.rglob("*.py"))
    content = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    own = f"{importlib.metadata.version('autotimm')} (files {content[:8]})"
    names = ("torch", "lightning", "timm")
    python = {"Python": ".".join(platform.python_version_tuple()[:2])}
    return {name: importlib.metadata.version(name) for name in names} | {"autotimm": own} | python


def settings(trainer: Trainer, model: LightningModule) -> dict[str, str]:
    """The settings of the trainer, the data module and the model, by their flags."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    given: dict[str, Any] = {"the number of ranks": trainer.world_size}
    given["trainer.strategy"] = type(trainer.strategy).__name__
    given |= {f"trainer.{name}": getattr(trainer, name) for name in _TRAINER}
    given |= {f"data.{n}": getattr(datamodule, n) for n in _DATA if hasattr(datamodule, n)}
    given |= {f"model.{name}": value for name, value in dict(model.hparams).items()}
    given["the number of weights"] = sum(p.numel() for p in model.parameters())
    return {name: shortened(str(value)) for name, value in given.items()}


def shortened(text: str) -> str:
    """A short text to compare and to show; of a long one, its beginning and a digest."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - 20]}... (sha256 {hashlib.sha256(text.encode()).hexdigest()[:8]})"


def data(trainer: Trainer, ckpt_path: Any) -> dict[str, str]:
    """Open the splits of the stage, read a first sample, and return the fingerprints of the splits.

    Raises:
        InputError: this rank cannot use the data, or lacks resources for the loader.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    if not isinstance(datamodule, InstanceSegmentationDataModule):
        return {}
    strategy, stage = trainer.strategy, str(trainer.state.fn.value if trainer.state.fn else "fit")
    splits = datamodule.check(stage)
    workers, prefetch = datamodule.num_workers, datamodule.prefetch_factor
    processes = trainer.num_devices if isinstance(strategy, ParallelStrategy) else 1
    height, width = datamodule.image_size
    images = datamodule.batch_size * 3 * height * width
    resources.check_open_files(workers, prefetch)
    resources.check_shared_memory(images, workers, prefetch, processes)
    if isinstance(strategy, DeepSpeedStrategy) and isinstance(strategy.config, dict):
        resources.check_batch(
            strategy.config,
            datamodule.batch_size,
            trainer.accumulate_grad_batches,
            trainer.world_size,
        )
    # Remote data: only read the first sample if the run will use it.
    if not ckpt_path or datamodule.settings.location.folder is not None:
        world = World(trainer.global_rank, trainer.world_size)
        read_one(datamodule.source(splits[0]), world, datamodule, shuffle=stage == "fit")
    if stage == "fit":
        warn_of_repeats(datamodule, splits[0], trainer.world_size)
    return {f"the data of split {s!r}": datamodule.source(s).fingerprint[:12] for s in splits}


def warn_of_repeats(datamodule: Any, split: str, ranks: int) -> None:
    """Warn if a step has more images than the split, so that it repeats some of them."""
    images, step = int(datamodule.source(split).shard_sizes.sum()), datamodule.batch_size * ranks
    if step > images:
        rank_zero_warn(
            f"data.batch_size={datamodule.batch_size} on {ranks} ranks makes steps of {step} "
            f"images, and split {split!r} has {images}: each step shows some of them more than "
            f"once: lower data.batch_size"
        )


def read_one(source: Source, world: World, datamodule: Any, shuffle: bool) -> None:
    """Read samples of this rank's first batch until one can be used.

    Raises:
        InputError: none of them can be read, so the data are probably out of reach.
    """
    order = EpochOrder(source.shard_sizes, datamodule.seed, 0, shuffle)
    positions = batch_positions(0, world, datamodule.batch_size)
    problems = []
    for shard, index in np.stack(order.locate(positions), -1).tolist():
        try:
            source.read(shard, index)
            return
        except DataError as error:
            problems.append(str(error))
    raise InputError(f"no image of the first batch can be read: {problems[0]}")


def checkpoint(path: Any) -> dict[str, str]:
    """The size of the checkpoint that the run resumes from.

    Raises:
        InputError: this rank does not see the file.
    """
    if not path or urls.kind(str(path)):
        return {}
    if not Path(path).exists():
        raise InputError(f"the checkpoint {path} is not here")
    size = Path(path).stat().st_size if Path(path).is_file() else "a folder"
    return {f"the size of {path}": str(size)}
