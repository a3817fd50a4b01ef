"""A learning rate and a batch size to begin with, found by trying; each a run of its own.

Invariants: nothing is written; the model's weights are afterwards what they were. The trainer is
used up: a training needs a new one.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.tuner import Tuner
from torch import Tensor

from autotimm.strategies.fsdp import FSDP
from autotimm.structures import InputError

_SMOOTHING = 0.9
_LOST = 4.0  # times the least loss: it will not come back from there
_FIRST = 10  # steps in which the smoothed loss means little yet


def find_lr(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule,
    least: float,
    most: float,
    steps: int,
) -> float:
    """The learning rate at which the loss falls fastest, by a range test (Smith 2017).

    The rate grows from ``least`` to ``most`` by a constant factor a step, that of each parameter
    group keeps its share (Lightning's own finder gives all groups one rate, which is not what a
    ``layer_decay`` trains with). The test ends early where the smoothed loss is four times what it
    was at best, or no number. All ranks take part and get the same answer.

    Raises:
        InputError: too few steps, no range, sharded weights, or a loss that never falls.
    """
    if steps <= 2 * _FIRST or not 0 < least < most < math.inf:
        raise InputError(
            f"find_lr: steps={steps} must be above {2 * _FIRST}, and least={least} below "
            f"most={most}, both above 0"
        )
    whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    if not whole or isinstance(trainer.strategy, DeepSpeedStrategy | FSDP):
        raise InputError("find_lr takes one device or strategy=ddp: it puts whole weights back")
    sweep = _Sweep(least, most, steps)
    _bare(trainer, [sweep])
    trainer.fit_loop.max_epochs = -1
    trainer.fit_loop.epoch_loop.max_steps = steps
    # What a tried rate did to the weights is no part of the answer.
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "warmup_steps=")  # there is no warm-up here
        trainer.fit(model, datamodule=datamodule)
    model.load_state_dict(before)
    return steepest(sweep.rates, sweep.losses)


def find_batch_size(
    trainer: Trainer, model: LightningModule, datamodule: Any, most: int, steps: int
) -> int:
    """The largest ``batch_size`` whose first ``steps`` steps fit into the memory of one GPU, less
    5 %: later batches may hold more instances.

    By Lightning's finder: doubled from 1 until it does not fit, then halved in between.

    Raises:
        InputError: several processes, or no GPU: a CPU's memory has no limit that could be tried.
    """
    if trainer.world_size > 1 or not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise InputError(
            "find_batch_size takes one process and strategy=auto: its answer is that of every rank"
        )
    if not _has_limited_memory(trainer):
        raise InputError("find_batch_size needs a GPU: what a CPU's memory holds cannot be tried")
    if most < 1 or steps < 1:
        raise InputError(f"find_batch_size: most={most} and steps={steps} must be at least 1")
    _bare(trainer, [])
    own, datamodule.batch_size = datamodule.batch_size, 1  # the schedule asks for a loader early
    scales = getattr(datamodule, "scales", ())
    if scales:  # the first steps may draw small ones
        datamodule.scales = ()
    try:
        found = Tuner(trainer).scale_batch_size(
            model,
            datamodule=datamodule,
            mode="binsearch",
            steps_per_trial=steps,
            init_val=1,
            max_val=most,
        )
    finally:
        datamodule.batch_size = own
        if scales:
            datamodule.scales = scales
    assert found is not None
    return found


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the loss falls fastest for a relative growth of the rate.

    Only the fall to the least loss counts: too high a rate throws the loss up, and it may fall
    steeply from there, to nowhere good.

    Args:
        rates: growing.
        losses: smoothed, one for each; the first ones, and the one before the end, are left out.

    Raises:
        InputError: it falls nowhere, or there are too few.
    """
    y = torch.tensor(losses[_FIRST:-1], dtype=torch.float64)
    y = y[: int(y.argmin()) + 1] if len(y) else y
    x = torch.tensor(rates[_FIRST : _FIRST + len(y)], dtype=torch.float64).log()
    if len(y) >= 2:
        slope = torch.gradient(y, spacing=(x,))[0]
        at = int(slope.argmin())
        if slope[at] < 0:
            return rates[_FIRST + at]
    raise InputError(
        "find_lr: the loss falls at no learning rate between "
        f"{rates[0]:.3g} and {rates[-1]:.3g}: try another range, or more steps"
    )


class _Sweep(Callback):
    """Sets the learning rates of each step, and notes the loss."""

    def __init__(self, least: float, most: float, steps: int) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._planned = torch.logspace(
            math.log10(least), math.log10(most), steps, dtype=torch.float64
        ).tolist()
        self._shares: list[float] = []
        self._mean = 0.0
        self._sum: Any = 0.0  # of the batches of a step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        groups = trainer.optimizers[0].param_groups
        base = [group.get("initial_lr", group["lr"]) for group in groups]
        self._shares = [rate / max(base) for rate in base]
        trainer.strategy.lr_scheduler_configs = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        rate = self._planned[trainer.global_step]
        groups = trainer.optimizers[0].param_groups
        for group, share in zip(groups, self._shares, strict=True):
            group["lr"] = rate * share

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._sum = self._sum + outputs["loss"].detach()
        if trainer.global_step == len(self.losses):
            return  # the step has more batches
        total, self._sum = self._sum, 0.0
        self._mean = _SMOOTHING * self._mean + (1 - _SMOOTHING) * _over_ranks(total)
        self.rates.append(self._planned[len(self.losses)])
        self.losses.append(self._mean / (1 - _SMOOTHING ** (len(self.losses) + 1)))
        best = min(self.losses)
        if not math.isfinite(self.losses[-1]) or self.losses[-1] > _LOST * best:
            self.rates.pop()
            self.losses.pop()
            trainer.should_stop = True


def _has_limited_memory(trainer: Trainer) -> bool:
    return trainer.strategy.root_device.type != "cpu"


def _over_ranks(loss: Tensor) -> float:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(loss)
        loss = loss / dist.get_world_size()
    return loss.item()


def _bare(trainer: Any, callbacks: list[Callback]) -> None:
    """Leaves a trainer nothing that writes, checks or validates."""
    shown = [one for one in trainer.callbacks if isinstance(one, ProgressBar)]
    trainer.callbacks = [*callbacks, *shown]
    trainer.loggers, trainer.unlogged = [], None
    trainer.limit_val_batches = 0
    trainer.num_sanity_val_steps = 0
