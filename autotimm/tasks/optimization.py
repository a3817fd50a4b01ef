"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

from autotimm.models.network import Network
from autotimm.structures import InputError
from autotimm.tasks import parameters
from autotimm.tasks.precision import may_fuse
from autotimm.tasks.settings import DetectorSettings, OptimizerName

MILESTONES = (8 / 12, 11 / 12)
"""Shares of the run after which ``multistep`` lowers the rate: epochs 8 and 11 of 12, as in
mmdetection."""

MOMENTUM = 0.9  # of SGD, as in every published recipe of a detector


def configure(
    network: Network, settings: DetectorSettings, trainer: Trainer
) -> OptimizerLRSchedulerConfig:
    """The optimizer and schedule of ``network``, as Lightning's ``configure_optimizers`` returns.

    Args:
        network: has the parameters to train.
        settings: of the model.
        trainer: determines the length of the run and whether the optimizer may be fused.

    Raises:
        InputError: the schedule depends on the end of the run, which is unknown; or for the reasons
            of :func:`autotimm.tasks.parameters.groups`.
    """
    total = trainer.estimated_stepping_batches
    if not math.isfinite(total) and settings.scheduler in ("cosine", "multistep"):
        raise InputError(
            f"scheduler={settings.scheduler!r} needs to know the end of the run: give max_epochs "
            f"or max_steps, or scheduler=constant"
        )
    if 0 < total <= settings.warmup_steps:
        rank_zero_warn(
            f"warmup_steps={settings.warmup_steps}, but the run has {total:.0f} steps: the "
            f"learning rate never reaches lr={settings.lr}; --model.warmup_steps "
            f"{total // 10:.0f} warms up for a tenth of them"
        )
    groups = parameters.groups(
        network,
        settings.backbone,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        backbone_lr_factor=settings.backbone_lr_factor,
        layer_decay=settings.layer_decay,
    )
    optimizer = build(settings.optimizer, groups, fused=may_fuse(trainer))

    def factor(step: int) -> float:
        warmup, milestones = settings.warmup_steps, settings.milestones
        return lr_factor(step, total, warmup, settings.scheduler, milestones)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def build(
    optimizer: OptimizerName, groups: list[dict[str, Any]], fused: bool = False
) -> torch.optim.Optimizer:
    """Build an optimizer for ``groups``, which contain their learning rates and weight decays.

    Args:
        optimizer: the name of the optimizer.
        groups: from :func:`autotimm.tasks.parameters.groups`.
        fused: whether to use fused kernels, which skip a step if a flag on the device
            (``found_inf``) is set. A loaded state does not change this setting.
    """
    built: torch.optim.Optimizer
    if optimizer == "sgd":
        built = torch.optim.SGD(groups, momentum=MOMENTUM, fused=fused)
        if fused:
            # If the flag skipped the first step, the buffers of that step would be uninitialised.
            for parameter in (p for group in built.param_groups for p in group["params"]):
                built.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    else:
        built = torch.optim.AdamW(groups, fused=fused)

    def keep_kernels(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        _check_same(built, state)
        return {**state, "param_groups": [{**g, "fused": fused} for g in state["param_groups"]]}

    built.register_load_state_dict_pre_hook(keep_kernels)
    return built


def _check_same(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Raise InputError if ``state`` comes from another optimizer, groups, learning rates or decays.

    torch would replace the given rates and decays by those of the state.
    """
    mine, saved = optimizer.param_groups, state["param_groups"]
    sizes, saved_sizes = ([len(group["params"]) for group in groups] for groups in (mine, saved))
    if sizes != saved_sizes or ("momentum" in mine[0]) != ("momentum" in saved[0]):
        raise InputError(
            "the checkpoint to resume from was trained with another optimizer, or other "
            "layer_decay, backbone_lr_factor, freeze_backbone or frozen_stages: give those of "
            "its run"
        )
    for name, key in (("lr", "initial_lr"), ("weight_decay", "weight_decay")):
        for group, other in zip(mine, saved, strict=True):
            given, kept = group.get(key), other.get(key)
            if given is not None and kept is not None and not math.isclose(given, kept):
                raise InputError(
                    f"{name} is {given:g} for some parameters, but the checkpoint to resume from "
                    f"was trained with {kept:g}: give that of its run, or begin a new one from its "
                    f"weights (InstanceSegmentor.load_from_checkpoint)"
                )


def check_resumable(settings: DetectorSettings, saved: Any) -> None:
    """Compare the settings of a run with those of the checkpoint that it resumes from.

    A different schedule takes effect from now on, with a warning. A different optimizer cannot use
    the saved state.

    Args:
        settings: of the model that resumes.
        saved: the hyper-parameters in the checkpoint; those of other programs may have none.

    Raises:
        InputError: the optimizer differs.
    """
    if not isinstance(saved, dict):
        return
    before = saved.get("optimizer", settings.optimizer)
    if before != settings.optimizer:
        raise InputError(
            f"optimizer={settings.optimizer}, but the checkpoint to resume from was trained with "
            f"{before}: give that of its run, or begin a new one from its weights "
            f"(InstanceSegmentor.load_from_checkpoint)"
        )
    changed = [
        (f"{name}={given}", f"{name}={kept}")
        for name in ("scheduler", "milestones", "warmup_steps")
        if (given := getattr(settings, name)) != (kept := saved.get(name, given))
    ]
    if changed:
        now, then = (", ".join(texts) for texts in zip(*changed, strict=True))
        rank_zero_warn(
            f"from here the learning rate follows {now}, but the checkpoint to resume from was "
            f"trained with {then}"
        )


def lr_factor(
    step: int,
    total_steps: float,
    warmup_steps: int,
    scheduler: str | None,
    milestones: Sequence[float] | None = None,
) -> float:
    """The factor of the learning rate at an optimizer step.

    Warm-up rises linearly from a thousandth, as in detectron2. After that, ``cosine`` falls to 1 %
    at the end of the run, ``multistep`` divides by ten at each milestone, and ``constant`` (or
    None) stays at 1.

    Args:
        step: from 0 on.
        total_steps: of the run; may be infinite for ``constant``.
        warmup_steps: steps of warm-up.
        scheduler: the name of the schedule.
        milestones: shares of the run; MILESTONES if None.
    """
    if step < warmup_steps:
        return 0.001 + 0.999 * step / warmup_steps
    if scheduler == "cosine":
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if scheduler == "multistep":
        shares = MILESTONES if milestones is None else milestones
        return 0.1 ** sum(step >= int(total_steps * share + 1e-6) for share in shares)
    return 1.0
