"""Hide messages of the libraries about their internals, which users cannot act upon.

Messages that users can act upon stay, unless this package reports the same itself.
"""

from __future__ import annotations

import logging
import os
import warnings

_WARNINGS = (
    "Grad strides do not match bucket view strides",  # 1x1 convolutions of oneDNN in bf16
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "Precision bf16-mixed is not supported by the model summary",
    r"It is recommended to use `self.log\('train/",  # these are already reduced over ranks
)
_LINES = (
    "💡 Tip: ",  # advertises a product
    "TPU available: False",
    "Loading `train_dataloader` to estimate",
    "Trainer already configured with model summary",
    # training/start.py reports the checkpoint once, without the secrets of a URL.
    "Restoring states from the checkpoint path",
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
)


def quiet_libraries() -> None:
    """Hide these warnings and lines in this process from now on."""
    for text in _WARNINGS:
        warnings.filterwarnings("ignore", message=text)
    if "SLURM_JOB_ID" not in os.environ:  # in a job it may be the problem
        warnings.filterwarnings("ignore", message="The `srun` command is available")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_for_users)


def _is_for_users(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_LINES)
