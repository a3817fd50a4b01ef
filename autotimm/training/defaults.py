"""The callbacks and plugins that AutoTrainer adds to the user's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ProgressBar as LightningBar
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.io import CheckpointIO

from autotimm.checkpoints.storage import PlainCheckpointIO
from autotimm.distributed.launcher import find_launcher
from autotimm.outputs.curves import SaveCurves
from autotimm.outputs.pictures import SavePictures
from autotimm.outputs.results import SaveResults
from autotimm.training.check_loss import CheckLoss
from autotimm.training.first_step import FirstStep
from autotimm.training.progress import ProgressBar
from autotimm.training.run_record import RunRecord
from autotimm.training.state import KeepState
from autotimm.training.throughput import EpochLines, LearningRate, Throughput


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


def default_callbacks(
    given: Sequence[Callback], bar: bool, *more: Callback, barebones: bool = False
) -> list[Callback]:
    """The default callbacks of a run, without those that the user replaces.

    Args:
        given: the user's callbacks. Each replaces the default of the same class.
        bar: whether to add a progress bar.
        *more: callbacks for the trainer's arguments.
        barebones: whether to leave out all that writes or measures something.
    """
    defaults: list[Callback] = [CheckLoss()]
    if not barebones:
        defaults += [Throughput(), LearningRate(), EpochLines()]
        defaults += [SavePictures(), SaveResults(), SaveCurves(), RunRecord(), KeepState()]
        defaults.append(FirstStep())
    defaults += more
    if bar and not any(isinstance(callback, LightningBar) for callback in given):
        defaults.append(ProgressBar())
    return [d for d in defaults if not any(isinstance(g, type(d)) for g in given)]
