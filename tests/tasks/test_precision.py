"""Which optimizers are fused, and that the host does not wait for a GPU in a training step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from batches import random_batch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import precision as lightning_precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from autotimm import AutoTrainer, InstanceSegmentor
from autotimm.strategies.fsdp import FSDP
from autotimm.tasks.precision import MixedPrecision, may_fuse


class Run:
    """The attributes of a trainer that ``may_fuse`` reads."""

    def __init__(self, strategy, plugin) -> None:
        self.strategy = strategy
        strategy.precision_plugin = plugin


@pytest.mark.parametrize(
    ("strategy", "plugin", "fused"),
    [
        (SingleDeviceStrategy("cuda:0"), MixedPrecision("16-mixed", "cuda"), True),
        (SingleDeviceStrategy("cuda:0"), MixedPrecision("bf16-mixed", "cuda"), True),
        (SingleDeviceStrategy("cuda:0"), lightning_precision.Precision(), True),
        # Lightning's class does not clip the gradients of fused optimizers.
        (
            SingleDeviceStrategy("cuda:0"),
            lightning_precision.MixedPrecision("bf16-mixed", "cuda"),
            False,
        ),
        (SingleDeviceStrategy("cpu"), lightning_precision.Precision(), False),
        (
            FSDP(parallel_devices=[torch.device("cuda:0")]),
            MixedPrecision("16-mixed", "cuda"),
            False,
        ),
    ],
)
def test_optimizers_are_fused_where_nothing_else_steps_them(strategy, plugin, fused) -> None:
    assert may_fuse(Run(strategy, plugin)) is fused


def test_a_checkpoint_of_lightnings_scaler_is_taken_on() -> None:
    assert MixedPrecision.__qualname__ == lightning_precision.MixedPrecision.__qualname__


class Forbid(Callback):
    """Raises an error at a wait for the GPU from the third batch on, after the compilation."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module, batch, batch_idx) -> None:
        torch.cuda.set_sync_debug_mode("error" if batch_idx >= 2 else "default")

    def on_train_batch_end(self, trainer: Trainer, pl_module, outputs, batch, batch_idx) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self.steps += 1


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true"])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_training_step_waits_for_the_gpu(
    optimizer: str, precision: str, compiled: bool, tmp_path: Path
) -> None:
    """The step includes clipping, the loss scaler, the check of the loss and the optimizer."""
    model = InstanceSegmentor(
        backbone="resnet10t",
        num_classes=3,
        pretrained=False,
        fpn_channels=32,
        head_convs=1,
        optimizer=optimizer,
        compile_model=compiled,
    )
    forbid = Forbid()
    run = AutoTrainer(
        accelerator="gpu",
        devices=1,
        precision=precision,
        max_epochs=1,
        gradient_clip_val=10.0,
        callbacks=forbid,
        default_root_dir=tmp_path,
        enable_model_summary=False,
    )
    try:
        run.fit(
            model, DataLoader([random_batch([3, 0], seed=i) for i in range(8)], batch_size=None)
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert forbid.steps == 8
    assert all(group["fused"] for group in run.optimizers[0].param_groups)
    assert all(p.isfinite().all() for p in model.parameters())
