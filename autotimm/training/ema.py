"""An exponential moving average of the weights, which is evaluated and published.

Invariants: the average does not affect training, so a run has the same losses with and without it;
every checkpoint holds both the trained weights as ``state_dict`` and the average as ``ema``; a
resumed run has the average of the uninterrupted run, bit for bit; the host never waits for the
device because of it.

Lightning's callback ``WeightAveraging`` (2.6.6) keeps none of these. Its average begins with the
weights after the first step and has their precision; the host reads a tensor from the device at
each step; a checkpoint saved during validation has the two sets of weights swapped; and one saved
at the end of training or later lacks the trained weights. A subclass would have to replace all of
its methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from autotimm.plain import plain_arguments
from autotimm.strategies.choice import shards_weights
from autotimm.strategies.norms import from_first_rank
from autotimm.structures import InputError
from autotimm.tasks.checkpoint import EMA, weights_of

Pairs = list[tuple[Tensor, Tensor]]  # averages and the tensors that they average, without repeats


def decay_at(step: int, decay: float) -> float:
    """The weight of the old average at optimizer step ``step``, from 1 on.

    It rises as (1 + step) / (10 + step) up to ``decay``, as in TensorFlow's
    ExponentialMovingAverage with ``num_updates``, so the initial weights soon lose their influence.
    """
    return min(decay, (1 + step) / (10 + step))


class AverageWeights(Callback):
    """Averages the weights and buffers over the optimizer's steps, and evaluates the average.

    Validation during a fit uses the average, and the model holds it after the fit. Tensors that are
    not floating point, such as a count of batches, are copied.

    Args:
        decay: the weight of the old average at each step (:func:`decay_at`).

    Raises:
        InputError: ``decay`` is not between 0 and 1; in a fit: the strategy shards the weights, or
            the checkpoint to resume from has the average of a different model.
    """

    @plain_arguments
    def __init__(self, decay: float = 0.9998) -> None:
        if not 0 < decay < 1:
            raise InputError(f"ema_decay={decay} must lie between 0 and 1, such as 0.9998")
        self.decay = decay
        self._forget()

    def _forget(self) -> None:
        self._average: dict[str, Tensor] = {}  # by the names of the state dict
        self._trained: dict[str, Tensor] | None = None  # while the model holds the average
        self._loaded: Mapping[str, Tensor] | None = None
        self._step = 0  # the last one that the average includes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            check_strategy(trainer.strategy)
            self._forget()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if EMA in checkpoint:
            self._loaded = weights_of(checkpoint)
        else:
            rank_zero_warn(
                "the checkpoint to resume from has no average of the weights (it was trained "
                "without ema_decay): the average begins with its weights"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        copies: dict[int, Tensor] = {}  # a tensor with two names is averaged once
        for name, tensor in _tensors(pl_module).items():
            if id(tensor) not in copies:
                full = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
                copies[id(tensor)] = full.clone()
            self._average[name] = copies[id(tensor)]
        if self._loaded is not None:
            shapes = {name: getattr(value, "shape", None) for name, value in self._loaded.items()}
            if shapes != {name: tensor.shape for name, tensor in self._average.items()}:
                raise InputError(
                    "the average of the weights in the checkpoint to resume from is of another "
                    "model: give the settings of its run"
                )
            for name, tensor in self._loaded.items():
                self._average[name].copy_(tensor)
            self._loaded = None
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._update_average(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._update_average(trainer, pl_module)
            self._show(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_back(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING or not self._average:
            return
        self._update_average(trainer, pl_module)
        if self._trained is not None:
            if isinstance(trainer.strategy, DeepSpeedStrategy):
                self._put_back(pl_module)  # because DeepSpeed saves the module's own weights
            else:
                checkpoint["state_dict"] = dict(self._trained)
        checkpoint[EMA] = {"decay": self.decay, "state_dict": dict(self._average)}

    @torch.no_grad()
    def _update_average(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Updates the average after an optimizer step, unless that has been done.

        Several hooks call it: a callback that comes earlier may save a checkpoint before this one's
        ``on_train_batch_end``, and that hook also follows batches without an optimizer step.
        """
        if not self._average or self._trained is not None or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        pairs = self._pairs(pl_module)
        moving = [(a, t.to(a.dtype)) for a, t in pairs if a.is_floating_point()]
        others = [(a, t) for a, t in pairs if not a.is_floating_point()]
        share = 1 - decay_at(self._step, self.decay)
        if moving:
            torch._foreach_lerp_([a for a, _ in moving], [t for _, t in moving], share)
        if others:
            torch._foreach_copy_([a for a, _ in others], [t for _, t in others])

    def _show(self, pl_module: LightningModule) -> None:
        """Makes the model hold the average: the first rank's, which a checkpoint has.

        The averages of other ranks differ in the statistics of batch norms, which each rank
        computes over its own images.
        """
        if not self._average or self._trained is not None:
            return
        self._trained = {name: t.detach().clone() for name, t in _tensors(pl_module).items()}
        _copy([(t, a) for a, t in self._pairs(pl_module)])
        from_first_rank(pl_module)

    def _put_back(self, pl_module: LightningModule) -> None:
        if self._trained is not None:
            trained, self._trained = self._trained, None
            _copy([(tensor, trained[name]) for name, tensor in _tensors(pl_module).items()])

    def _pairs(self, pl_module: LightningModule) -> Pairs:
        named = {id(t): (self._average[name], t) for name, t in _tensors(pl_module).items()}
        return list(named.values())


def check_strategy(strategy: Strategy) -> None:
    """Raise InputError for a strategy in which no rank has the whole weights."""
    if shards_weights(strategy):
        name = "deepspeed_stage_3" if isinstance(strategy, DeepSpeedStrategy) else "fsdp"
        raise InputError(
            f"ema_decay does not work with strategy={name}, in which each rank has only a part of "
            f"the weights: take ddp or deepspeed_stage_2, or leave ema_decay out"
        )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state dict by name, not copies.

    They must not be cached: moving a module to another device replaces its buffers.
    """
    state = module.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


@torch.no_grad()
def _copy(pairs: Pairs) -> None:
    """Copy the second tensor of each pair to the first, for any types and devices."""
    for target, source in pairs:
        target.copy_(source, non_blocking=source.is_cuda and target.is_cuda)
