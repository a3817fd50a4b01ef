"""Search for a learning rate and a batch size by training for a few steps.

Invariants: nothing is written, and the model's weights are restored. The trainer is used up;
training needs a new one.
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
_DIVERGED = 4.0  # times the lowest loss; the loss does not recover from there
_FIRST = 10  # steps before the smoothed loss is meaningful


def find_lr(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule,
    least: float,
    most: float,
    steps: int,
    **start: Any,
) -> float:
    """The learning rate at which the loss falls fastest, by a range test (Smith 2017).

    The rate grows from ``least`` to ``most`` by a constant factor per step, and the ratios between
    the rates of parameter groups stay. (Lightning's finder gives all groups the same rate, which
    does not fit ``layer_decay``.) The test ends early if the smoothed loss is not finite or is four
    times its minimum. All ranks call it and get the same answer. ``start`` are arguments of the
    trainer's ``fit``, for the weights to start from.

    Raises:
        InputError: there are too few steps, the range is empty, the strategy shards the weights, or
            the loss never falls.
    """
    if steps <= 2 * _FIRST or not 0 < least < most < math.inf:
        raise InputError(
            f"find_lr: steps={steps} must be above {2 * _FIRST}, and least={least} below "
            f"most={most}, both above 0"
        )
    whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    if not whole or isinstance(trainer.strategy, DeepSpeedStrategy | FSDP):
        raise InputError("find_lr takes one device or strategy=ddp: it restores whole weights")
    sweep = _Sweep(least, most, steps)
    _bare(trainer, [sweep])
    trainer.fit_loop.max_epochs = -1
    trainer.fit_loop.epoch_loop.max_steps = steps
    # To undo the changes of the weights by the tried rates.
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "warmup_steps=")  # there is no warm-up here
        trainer.fit(model, datamodule=datamodule, **start)
    model.load_state_dict(before)
    return steepest(sweep.rates, sweep.losses)


def find_batch_size(
    trainer: Trainer, model: LightningModule, datamodule: Any, most: int, steps: int
) -> int:
    """The largest ``batch_size`` whose first ``steps`` steps fit into the memory of one GPU.

    Lightning's finder doubles the size from 1 until it does not fit, then bisects. Its result is
    5 % lower than that, because later batches may contain more instances.

    Raises:
        InputError: there are several processes, or no GPU: the limit of a CPU's memory cannot be
            tried.
    """
    if trainer.world_size > 1 or not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise InputError(
            "find_batch_size takes one process and strategy=auto: its answer suits every rank"
        )
    if not _has_limited_memory(trainer):
        raise InputError("find_batch_size needs a GPU: the limit of a CPU's memory cannot be tried")
    if most < 1 or steps < 1:
        raise InputError(f"find_batch_size: most={most} and steps={steps} must be at least 1")
    _bare(trainer, [])
    own, datamodule.batch_size = datamodule.batch_size, 1  # the schedule asks for a loader early
    scales = getattr(datamodule, "scales", ())
    if scales:  # the first steps may draw small ones
        datamodule.scales = ()
    try:
        batch_size = Tuner(trainer).scale_batch_size(
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
    assert batch_size is not None
    return batch_size


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the loss falls fastest, with respect to the logarithm of the rate.

    Only losses up to the minimum count. A rate that is too high makes the loss jump, and it may
    fall steeply after that without getting low.

    Args:
        rates: increasing.
        losses: the smoothed loss at each rate; the first ten and the last are ignored.

    Raises:
        InputError: the loss never falls, or there are too few losses.
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
    """Sets the learning rates of each step, and records the loss."""

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
        if not math.isfinite(self.losses[-1]) or self.losses[-1] > _DIVERGED * best:
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
    """Remove everything from a trainer that writes, checks or validates."""
    shown = [one for one in trainer.callbacks if isinstance(one, ProgressBar)]
    trainer.callbacks = [*callbacks, *shown]
    trainer.loggers, trainer.unlogged = [], None
    trainer.limit_val_batches = 0
    trainer.num_sanity_val_steps = 0
