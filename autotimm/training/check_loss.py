"""End a run before a loss or gradient that is not finite changes the weights.

Invariants: no rank's optimizer steps with such gradients; all ranks stop at the same step; no
checkpoint is saved after it; a step that the loss scaler of 16-mixed skips does not end the run.

The host does not wait for the device at every step. If the optimizer is fused, a flag on the device
makes its kernels skip the step, and the host reads the flag one step later, or before a validation
or a checkpoint. With a loss scaler, the flag is the scaler's, which depends on the gradients, so a
loss that is not finite also makes its gradients so. If the optimizer is not fused (on a CPU, or a
user's own), the host checks before the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from autotimm.distributed.gather import from_all_ranks
from autotimm.structures import InputError

MOST_SKIPPED = 64
"""The number of consecutive steps that a loss scaler may skip. It halves the scale at each, so any
scale is below 1 by then, and the gradients are not finite for another reason."""

_MOST_NAMED = 64  # images in a message


@dataclass(frozen=True, slots=True)
class _Step:
    """An optimizer step to check. The tensors are scalars."""

    number: int
    images: list[str]  # of this rank's batches
    loss: Tensor
    bad: Tensor  # 1 if any rank's loss or gradients are not finite, else 0; on the host
    arrived: torch.cuda.Event | None  # after which ``bad`` can be read


class CheckLoss(Callback):
    """Ends a run if the loss or gradients are not finite, and names the images of that step."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._loss: Tensor | None = None  # summed over the batches since the last optimizer step
        self._images: list[str] = []
        self._skipped: Tensor | None = None  # consecutive steps
        self._step: _Step | None = None  # the last one, until its flag is read

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._images += batch.get("file_name", [])

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Makes the gradients NaN if ``loss``, which may be scaled, is not finite."""
        value = loss.detach()
        self._loss = value if self._loss is None else self._loss + value
        factor = torch.where(value.isfinite(), 1.0, torch.nan).to(value.dtype)
        loss.register_hook(lambda gradient: gradient * factor)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._look()
        assert self._loss is not None
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        fused = all(group.get("fused") for group in optimizer.param_groups)
        norm = _gradient_norm(optimizer, self._loss)
        lost = ~self._loss.isfinite()
        if self._skipped is None:
            self._skipped = torch.zeros_like(self._loss)
        self._skipped = torch.where(norm.isfinite() | lost, 0.0, self._skipped + 1)
        bad = (lost | (self._skipped >= (MOST_SKIPPED if scaled else 1))).float()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        if fused and not scaled:
            optimizer.found_inf = bad  # type: ignore[attr-defined]
        on_host, arrived = bad, None
        if fused and bad.is_cuda:
            on_host, arrived = bad.to("cpu", non_blocking=True), torch.cuda.Event()
            arrived.record()
        self._step = _Step(trainer.global_step + 1, self._images, self._loss, on_host, arrived)
        self._loss, self._images = None, []
        if not fused:
            self._look()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._look()

    def _look(self) -> None:
        """Raises InputError if the last step was bad; either all ranks raise it or none."""
        step, self._step = self._step, None
        if step is None:
            return
        if step.arrived is not None:
            step.arrived.synchronize()
        if step.bad.item():
            raise InputError(_message(step))


def _gradient_norm(optimizer: Optimizer, loss: Tensor) -> Tensor:
    """Norm of all gradients together, or of this rank's share of them under DeepSpeed.

    Gradients above about 1e19 overflow it and count as infinite, because they are as useless.
    """
    hidden: Any = getattr(optimizer, "averaged_gradients", None)  # DeepSpeed's
    if hidden is not None:
        gradients = [gradient for group in hidden.values() for gradient in group or ()]
    else:
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        gradients = [p.grad for p in parameters if p.grad is not None]
    norm = get_total_norm(gradients)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).to(loss)


def _message(step: _Step) -> str:
    """One line, the same on all ranks. All ranks call it."""
    ranks = from_all_ranks((step.loss.item(), step.images))
    lost = [i for i, (loss, _) in enumerate(ranks) if not math.isfinite(loss)]
    if lost:
        what = f"the loss is {ranks[lost[0]][0]}"
    else:
        # Gradients are already summed over ranks here, so the cause may be on any rank.
        what = "the loss is finite, its gradients are not,"
    where = f" on rank{'s' * (len(lost) > 1)} {', '.join(map(str, lost))}" if lost else ""
    images = [name for i in lost or range(len(ranks)) for name in ranks[i][1]]
    more = f" and {len(images) - _MOST_NAMED} more" if len(images) > _MOST_NAMED else ""
    named = f" (images {', '.join(images[:_MOST_NAMED])}{more})" if images else ""
    return (
        f"{what} at step {step.number}{where if len(ranks) > 1 else ''}{named}: "
        f"the weights and the last checkpoint are those from before it; lower the learning rate, "
        f"set gradient_clip_val, or look at these images' annotations"
    )
