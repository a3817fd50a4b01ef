"""From the names of strategies and precisions to what Lightning takes.

Every strategy computes the same numbers: weights, gradients and losses are float32, mixed precision
is autocast's, and each has an explicit timeout.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.imports import RequirementCache

from autotimm.lightning_private import set_static_graph
from autotimm.strategies import zero
from autotimm.strategies.fsdp import FSDP
from autotimm.structures import InputError
from autotimm.tasks.precision import MixedPrecision

STAGES = {f"deepspeed_stage_{stage}": stage for stage in (1, 2, 3)}
NAMES = ("auto", "ddp", *STAGES, "fsdp")

MIXED = ("16-mixed", "bf16-mixed")
_FULL_NAMES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true"}

_DEEPSPEED = RequirementCache("deepspeed")


class DDP(DDPStrategy):
    """Lightning's, with a static graph where that holds: the same parameters get a gradient at
    every step, so that none is searched for, and a backbone may have some that never do.

    PyTorch's static graph breaks (an internal assertion, in 2.15) where the gradients of a step's
    first batches are not reduced.
    """

    def configure_ddp(self) -> None:
        assert self.lightning_module is not None
        trainer: Any = self.lightning_module.trainer
        scheduled = any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks)
        set_static_graph(self, trainer.accumulate_grad_batches == 1 and not scheduled)
        super().configure_ddp()


def accelerators() -> list[str]:
    """The names that Lightning knows."""
    return ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]


def strategy(
    given: str | Strategy, accelerator: str, one_device: bool, timeout: timedelta
) -> str | Strategy:
    """The strategy of a name: DDP, one of ours, or "auto" for Lightning's on one device.

    Args:
        given: one of ``NAMES``, a DeepSpeed config (``<path>.json``), or a strategy as it is.
        accelerator: as the user gave it.
        one_device: whether the run has a single process.
        timeout: how long a rank waits for the others in a collective operation.

    Raises:
        InputError: there is none of that name, or DeepSpeed is not installed or its config cannot
            be used.
    """
    if isinstance(given, Strategy) or (given == "auto" and one_device):
        return given
    if given in ("auto", "ddp"):
        return DDP(timeout=timeout, gradient_as_bucket_view=True, find_unused_parameters=False)
    if given == "fsdp":
        return FSDP(timeout=timeout)
    if given in STAGES or given.endswith(".json"):
        if not _DEEPSPEED:
            raise InputError(
                f"strategy={given} needs DeepSpeed: pip install deepspeed, or take ddp or fsdp"
            )
        if not _on_gpu(accelerator):
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # asked for when it is imported
        stage = STAGES.get(given)
        config = zero.stage_config(stage) if stage else deepspeed_config(given)
        return zero.ZeRO(config=config, timeout=timeout)
    raise InputError(
        f"strategy={given!r} is unknown: take {', '.join(NAMES)}, the path of a DeepSpeed config "
        f"(.json), or a Strategy of Lightning's"
    )


def shards_weights(strategy: Strategy) -> bool:
    """Whether each rank has a part of the weights alone, so that no forward pass, of an evaluation
    either, goes without all ranks."""
    if isinstance(strategy, DeepSpeedStrategy):
        return strategy.zero_stage_3
    return isinstance(strategy, FSDP | FSDPStrategy | ModelParallelStrategy)


def deepspeed_config(path: str | Path) -> dict[str, Any]:
    """The content of a DeepSpeed config.

    Raises:
        InputError: it cannot be read, or sets what the trainer's flags do.
    """
    try:
        config = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"strategy={path}: not a DeepSpeed config ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("zero_optimization"), dict):
        raise InputError(f"strategy={path}: a DeepSpeed config has a zero_optimization section")
    for name in zero.OURS:
        if name in config:
            raise InputError(
                f"strategy={path}: {name} follows from the trainer's precision, "
                f"accumulate_grad_batches and gradient_clip_val: leave it out of the config"
            )
    return config


def precision(
    name: Any, accelerator: str, chosen: str | Strategy, plugins: list[Any]
) -> tuple[Any, list[Any]]:
    """The precision that Lightning is told, and the plugins, which may have it in its place.

    Args:
        name: as the user gave it; None for 16-mixed on a GPU that is to be used, else 32-true.
        accelerator: as the user gave it; where "auto" finds no GPU, 16-mixed becomes 32-true, so
            that one script runs everywhere.
        chosen: what :func:`strategy` gave.
        plugins: the user's. One that is a precision stays.

    Raises:
        InputError: the device or the strategy has no such precision.
    """
    if any(isinstance(plugin, Precision) for plugin in plugins):
        return name, plugins
    on_gpu = _on_gpu(accelerator)
    name = MIXED[0] if name is None and on_gpu else _FULL_NAMES.get(str(name), name or "32-true")
    if name == "16-mixed" and accelerator == "auto" and not on_gpu:
        rank_zero_warn("precision=16-mixed needs a GPU, and there is none: going on in 32-true")
        return "32-true", plugins
    if name == "16-mixed" and not on_gpu:
        raise InputError(
            "precision=16-mixed needs a GPU: take bf16-mixed or 32-true on this device"
        )
    if name not in MIXED:
        return name, plugins
    if isinstance(chosen, zero.ZeRO):
        return None, [*plugins, zero.Autocast(name)]
    if isinstance(chosen, DeepSpeedStrategy):
        raise InputError(
            f"precision={name}: Lightning's DeepSpeedStrategy makes the boxes {name.split('-')[0]} "
            f"too: take strategy=deepspeed_stage_<n> or the path of a DeepSpeed config"
        )
    plain = chosen == "auto" or isinstance(chosen, DDPStrategy | SingleDeviceStrategy)
    if on_gpu and plain:
        return None, [*plugins, MixedPrecision(name, "cuda")]
    return name, plugins


def _on_gpu(accelerator: str) -> bool:
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
