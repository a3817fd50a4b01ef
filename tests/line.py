"""The least that a trainer can train: a model of one number, its batches, a quiet trainer."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from autotimm import AutoTrainer


class Line(LightningModule):
    """Learns one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def training_step(self, batch, batch_idx):
        return (self.weight * batch["image"].mean()) ** 2

    def validation_step(self, batch, batch_idx):
        return [{}, {}]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def loader(batches: int = 3) -> DataLoader:
    one = {
        "image": torch.ones(2, 3, 4, 4),
        "file_name": ["a.jpg", "b.jpg"],
        "padding": torch.ones(2),
    }
    return DataLoader([one] * batches, batch_size=None)


def quiet(folder: Path, **options) -> AutoTrainer:
    return AutoTrainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
