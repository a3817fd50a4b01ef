"""Mixed precision and optimizers that do not have the host wait for the device in each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins import precision
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch.optim import Optimizer

from autotimm.lightning_private import before_optimizer_step


class MixedPrecision(precision.MixedPrecision):
    """Lightning's, but optimizers with fused kernels may have their gradients clipped.

    Lightning refuses those, as they can unscale gradients themselves, after clipping. Here the
    scaler always unscales first, so that only the decision to skip a step is left to the kernels.
    They take it on the device; any other optimizer has the host wait for it at every step.

    The class has Lightning's name because checkpoints hold the scaler's state under it.
    """

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Optimizer, model: Any, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        if self.scaler is None:
            return super().optimizer_step(optimizer, model=model, closure=closure, **kwargs)
        loss = closure()
        if loss is None and model.automatic_optimization:  # no backward, nothing to step by
            return loss
        self.scaler.unscale_(optimizer)
        before_optimizer_step(self, model, optimizer)
        result = self.scaler.step(optimizer, **kwargs)
        self.scaler.update()
        return result

    def clip_gradients(
        self,
        optimizer: Optimizer,
        clip_val: int | float = 0.0,
        gradient_clip_algorithm: GradClipAlgorithmType = GradClipAlgorithmType.NORM,
    ) -> None:
        Precision.clip_gradients(self, optimizer, clip_val, gradient_clip_algorithm)


def may_fuse(trainer: Trainer) -> bool:
    """Whether the optimizer's kernels may be fused: on a GPU, where neither the strategy nor the
    precision has a way of its own to step it, as those have that shard what it steps."""
    strategy = trainer.strategy
    plugin = strategy.precision_plugin
    return (
        strategy.root_device.type == "cuda"
        and isinstance(strategy, DDPStrategy | SingleDeviceStrategy)
        and getattr(strategy, "strategy_name", "") != "fsdp"
        and (type(plugin) is Precision or isinstance(plugin, MixedPrecision))
    )
