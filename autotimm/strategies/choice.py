"""Make Lightning's strategies and precisions from the names that users give.

All strategies compute the same numbers: weights, gradients and losses are float32, and mixed
precision uses autocast. Each has an explicit timeout.
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
    """Lightning's DDP with a static graph, except when accumulating gradients.

    The same parameters get gradients at every step, so DDP need not search for unused ones, of
    which a backbone may have some. In PyTorch 2.15, a static graph raises an internal assertion if
    the gradients of a step's first batches are not reduced, as with accumulation.
    """

    def configure_ddp(self) -> None:
        assert self.lightning_module is not None
        trainer: Any = self.lightning_module.trainer
        scheduled = any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks)
        set_static_graph(self, trainer.accumulate_grad_batches == 1 and not scheduled)
        super().configure_ddp()


def accelerators() -> list[str]:
    """The names of accelerators that Lightning knows."""
    return ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]


def strategy(
    given: str | Strategy, accelerator: str, one_device: bool, timeout: timedelta
) -> str | Strategy:
    """The strategy with a name: one of this package's, or "auto" for Lightning's on one device.

    Args:
        given: one of ``NAMES``, a DeepSpeed config (``<path>.json``), or a Strategy, which is
            returned unchanged.
        accelerator: the user's argument.
        one_device: whether the run has a single process.
        timeout: how long a rank waits for the others in a collective operation.

    Raises:
        InputError: the name is unknown, DeepSpeed is not installed, or its config is invalid.
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
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed reads it when imported
        stage = STAGES.get(given)
        config = zero.stage_config(stage) if stage else deepspeed_config(given)
        return zero.ZeRO(config=config, timeout=timeout)
    raise InputError(
        f"strategy={given!r} is unknown: take {', '.join(NAMES)}, the path of a DeepSpeed config "
        f"(.json), or a Strategy of Lightning's"
    )


def shards_weights(strategy: Strategy) -> bool:
    """Whether each rank has only a part of the weights.

    Every forward pass then needs all ranks, also in evaluation.
    """
    if isinstance(strategy, DeepSpeedStrategy):
        return strategy.zero_stage_3
    return isinstance(strategy, FSDP | FSDPStrategy | ModelParallelStrategy)


def deepspeed_config(path: str | Path) -> dict[str, Any]:
    """The content of a DeepSpeed config.

    Raises:
        InputError: it cannot be read, or has settings that follow from the trainer's flags.
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
    """The precision and plugins for Lightning's trainer. The precision may become a plugin.

    Args:
        name: the user's argument; None for 16-mixed if the run uses a GPU, else 32-true.
        accelerator: the user's argument. With "auto" and without a GPU, 16-mixed becomes 32-true,
            so that one script runs everywhere.
        chosen: the result of :func:`strategy`.
        plugins: the user's. If one of them is a precision, it stays.

    Raises:
        InputError: the device or the strategy does not support the precision.
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
            f"precision={name}: Lightning's DeepSpeedStrategy converts boxes to "
            f"{name.split('-')[0]} too: take strategy=deepspeed_stage_<n> or the path of a "
            f"DeepSpeed config"
        )
    plain = chosen == "auto" or isinstance(chosen, DDPStrategy | SingleDeviceStrategy)
    if on_gpu and plain:
        return None, [*plugins, MixedPrecision(name, "cuda")]
    return name, plugins


def _on_gpu(accelerator: str) -> bool:
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
