"""How the trainer writes and reads its checkpoints: whole or not at all, plain values only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from autotimm.sharding.manifest import whole_file
from autotimm.structures import InputError
from autotimm.tasks.checkpoint import read_checkpoint


class PlainCheckpointIO(TorchCheckpointIO):
    """Lightning's files, with errors of one line.

    On a local disk a file is written beside its name, synced and renamed: a crash, a kill or a full
    disk leaves the one that was there. Elsewhere it is written as Lightning does.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Raises InputError where it cannot be written."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(target) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "")
            raise InputError(f"cannot write the checkpoint {target}: {reason}") from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """As :func:`read_checkpoint`, whatever ``weights_only`` says."""
        checkpoint = read_checkpoint(path, map_location)
        if "pytorch-lightning_version" not in checkpoint:
            raise InputError(f"{path} was not saved by a trainer: it holds weights alone")
        return checkpoint
