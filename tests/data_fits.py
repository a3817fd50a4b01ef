"""Fits of the data module with a model that records its batches, for several test files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from ranks import on_ranks

from autotimm.data.datamodule import InstanceSegmentationDataModule

IMAGES, VAL = 13, 5


def module(folder: Path, **options: Any) -> InstanceSegmentationDataModule:
    return InstanceSegmentationDataModule(
        folder, **({"image_size": 64, "batch_size": 2, "num_workers": 0} | options)
    )


class Recorder(LightningModule):
    """Learns one number, and records the images that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []
        self.batches: list[list[int]] = []
        self.shapes: list[list[int]] = []
        self.evaluated: list[int] = []
        self.predicted: list[int] = []
        self.image: torch.Tensor | None = None

    def on_train_epoch_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
        if not self.seen:
            self.seen.append([])
        self.seen[-1] += batch["image_id"].tolist()
        self.batches.append(batch["image_id"].tolist())
        self.image = batch["image"]
        self.shapes.append(list(self.image.shape[2:]))
        return (self.weight - batch["image"].mean()).square().sum()

    def validation_step(self, batch: dict[str, Any]) -> None:
        self.evaluated += batch["image_id"][~batch["padding"]].tolist()

    test_step = validation_step

    def predict_step(self, batch: dict[str, Any]) -> None:
        self.predicted += batch["image_id"][~batch["padding"]].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **options: Any) -> Trainer:
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return Trainer(**(defaults | options))


class Scheduled(Recorder):
    """Makes Lightning create the training loader before it restores the run's position."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches > 0
        return super().configure_optimizers()


ENDS = """
    from autotimm.distributed.agreement import settle_at_exit
    settle_at_exit()  # AutoTrainer does
"""


def run_ranks(code: str, out: Path, *arguments: object) -> list[dict[str, Any]]:
    """Runs code on two ranks; returns the content of each rank's ``<rank>.json``."""
    done = on_ranks(code + ENDS, out, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]
