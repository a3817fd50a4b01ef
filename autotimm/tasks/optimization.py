"""Optimizers and learning-rate schedules, by the names that users give."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import nn

from autotimm.structures import InputError

OptimizerName = Literal["adamw", "sgd"]
SchedulerName = Literal["cosine", "multistep", "constant"]


def check(optimizer: str, scheduler: str | None, lr: float, warmup_steps: int) -> None:
    """Raises InputError for a setting that :func:`build` or :func:`lr_factor` cannot use."""
    if optimizer not in get_args(OptimizerName):
        raise InputError(f"optimizer={optimizer!r} is unknown: take adamw or sgd")
    if scheduler is not None and scheduler not in get_args(SchedulerName):
        raise InputError(f"scheduler={scheduler!r} is unknown: take cosine, multistep or constant")
    if not lr > 0 or not math.isfinite(lr):
        raise InputError(f"lr={lr} must be a positive number")
    if warmup_steps < 0:
        raise InputError(f"warmup_steps={warmup_steps} must not be negative")


def build(
    module: nn.Module, optimizer: str, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimizer over the parameters that take a gradient; norms and biases are not decayed."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=lr)


def lr_factor(step: int, total_steps: float, warmup_steps: int, scheduler: str | None) -> float:
    """What the learning rate is multiplied by at optimizer step ``step`` (0-based) of a run of
    ``total_steps``, which may be infinite for ``constant``.

    Warm-up rises linearly from a thousandth. Then ``cosine`` falls to 1 % at the end, ``multistep``
    drops to a tenth after 8/12 and again after 11/12 of the run (the Detectron schedule), and
    ``constant`` (or None) stays.
    """
    if step < warmup_steps:
        return 0.001 + 0.999 * step / warmup_steps
    if scheduler == "cosine":
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if scheduler == "multistep":
        return 0.1 ** sum(step >= total_steps * twelfths // 12 for twelfths in (8, 11))
    return 1.0
