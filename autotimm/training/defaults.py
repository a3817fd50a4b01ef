"""The callbacks and plugins that AutoTrainer adds to the user's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.callbacks import ProgressBar as LightningBar
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.io import CheckpointIO

from autotimm.checkpoints.callback import Checkpoints
from autotimm.checkpoints.settings import SaveSettings
from autotimm.checkpoints.storage import PlainCheckpointIO
from autotimm.distributed.launcher import find_launcher
from autotimm.outputs.curves import SaveCurves
from autotimm.outputs.pictures import SavePictures
from autotimm.outputs.results import SaveResults
from autotimm.training.check_loss import CheckLoss
from autotimm.training.early_stopping import StopEarly
from autotimm.training.ema import AverageWeights
from autotimm.training.epoch_lines import EpochLines
from autotimm.training.first_step import FirstStep
from autotimm.training.preemption import Preemption
from autotimm.training.progress import ProgressBar
from autotimm.training.run_record import RunRecord
from autotimm.training.state import KeepState
from autotimm.training.summary import Summary
from autotimm.training.throughput import LearningRate, Throughput


def all_plugins(given: Any) -> list[Any]:
    """The user's plugins, and ours for checkpoints unless the user gives one."""
    plugins = list(given) if isinstance(given, list | tuple) else [given] if given else []
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(PlainCheckpointIO())
    launcher = find_launcher()
    if launcher and launcher.name == "srun":
        # Lightning's requeueing acts on one rank alone, and the others hang.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return plugins


def all_callbacks(
    given: Callback | Sequence[Callback] | None,
    save: SaveSettings,
    *,
    timeout: timedelta,
    saves: bool = True,
    ema_decay: float | None = None,
    patience: int | None = None,
    bar: bool = True,
    summary: bool = True,
    barebones: bool = False,
) -> list[Callback]:
    """The user's callbacks, and ours. Each of the user's replaces ours of the same class.

    Args:
        given: the user's.
        save: when to save, and what to keep.
        timeout: how long a rank waits for the others.
        saves: whether anything is saved.
        ema_decay: as of AutoTrainer.
        patience: as of AutoTrainer.
        bar: whether to add a progress bar.
        summary: whether to print the size of the model.
        barebones: whether to leave out all that writes or measures something.

    Raises:
        InputError: ``ema_decay`` or ``patience`` is invalid, or ``save`` would have no effect.
    """
    users = [given] if isinstance(given, Callback) else list(given or ())
    ours: list[Callback] = [CheckLoss()]
    if not barebones:
        ours += [Throughput(), LearningRate(), EpochLines()]
        ours += [SavePictures(), SaveResults(), SaveCurves(), RunRecord(), KeepState()]
        ours.append(FirstStep())
    if ema_decay is not None:
        ours.append(AverageWeights(ema_decay))
    if patience is not None:
        ours.append(StopEarly(patience, save.best_metric))
    if summary and not barebones and not _has(users, ModelSummary):
        ours.append(Summary())
    if saves:
        # Shorter than NCCL's timeout, which ends the process without naming the hanging rank.
        ours += [Checkpoints(save), Preemption(0.9 * timeout)]
    else:
        save.check_saves_nothing()
    if bar and not _has(users, LightningBar):
        ours.append(ProgressBar())
    return [*users, *(one for one in ours if not _has(users, type(one)))]


def _has(callbacks: Sequence[Callback], kind: type[Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)
