"""Short fits that save checkpoints, and what is in a folder of them, for several test files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from line import Line, loader, quiet

from autotimm import AutoTrainer


class Measured(Line):
    """Logs a given value at each validation."""

    def __init__(self, *values: float, name: str = "val/AP") -> None:
        super().__init__()
        self.values, self.name = list(values), name

    def on_validation_epoch_end(self) -> None:
        self.log(self.name, self.values.pop(0))


def names(folder: Path) -> set[str]:
    """The checkpoints in a run's folder, and the targets of its links."""
    checkpoints = folder / "checkpoints"
    return {
        f"{p.name} -> {p.readlink()}" if p.is_symlink() else p.name for p in checkpoints.iterdir()
    }


def state(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def run(folder: Path, model: Line, batches: int = 4, **options: Any) -> AutoTrainer:
    trainer = quiet(folder, **{"max_epochs": 1, "num_sanity_val_steps": 0, **options})
    validated = loader(1) if isinstance(model, Measured) else None
    trainer.fit(model, loader(batches), validated)
    return trainer
