"""How the trainer reads its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO

from autotimm.tasks.checkpoint import read_checkpoint


class PlainCheckpointIO(TorchCheckpointIO):
    """Lightning's files, read as weights and plain values only, with errors of one line."""

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """As :func:`read_checkpoint`, whatever ``weights_only`` says."""
        return read_checkpoint(path, map_location)
