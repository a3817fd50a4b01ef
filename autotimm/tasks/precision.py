"""Mixed precision with fused optimizers, so that the host need not wait for the device."""

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
    """Lightning's mixed precision, which also clips the gradients of fused optimizers.

    Lightning refuses to, because a fused optimizer may unscale gradients itself after clipping.
    Here the scaler always unscales first, and the kernels only decide whether to skip the step.
    They decide on the device; with any other optimizer the host waits for the device at each step.

    The class has Lightning's name because checkpoints hold the scaler's state under it.
    """

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Optimizer, model: Any, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        if self.scaler is None:
            return super().optimizer_step(optimizer, model=model, closure=closure, **kwargs)
        loss = closure()
        if loss is None and model.automatic_optimization:  # without a backward pass, no step
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
    """Whether the optimizer may use fused kernels.

    They need a GPU, and a strategy and precision that call the optimizer directly. Strategies that
    shard parameters do not.
    """
    strategy = trainer.strategy
    plugin = strategy.precision_plugin
    return (
        strategy.root_device.type == "cuda"
        and isinstance(strategy, DDPStrategy | SingleDeviceStrategy)
        and getattr(strategy, "strategy_name", "") != "fsdp"
        and (type(plugin) is Precision or isinstance(plugin, MixedPrecision))
    )
