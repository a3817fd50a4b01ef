"""What the libraries below say of each other's insides, or of themselves, and no user can mend.

What a user can mend is never among it, and nothing is hidden that this package does not say itself.
"""

from __future__ import annotations

import logging
import os
import warnings

_WARNINGS = (
    "Grad strides do not match bucket view strides",  # 1x1 convolutions of oneDNN in bf16
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "Precision bf16-mixed is not supported by the model summary",
    r"It is recommended to use `self.log\('train/",  # all ranks have agreed on these already
)
_LINES = (
    "💡 Tip: ",  # of a product
    "TPU available: False",
    "Loading `train_dataloader` to estimate",
    "Trainer already configured with model summary",
    # Said once, by whoever chooses the checkpoint, and without the secrets of a URL.
    "Restoring states from the checkpoint path",
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
)


def quiet_libraries() -> None:
    """Leaves that out of this process' warnings and of Lightning's lines, from now on."""
    for text in _WARNINGS:
        warnings.filterwarnings("ignore", message=text)
    if "SLURM_JOB_ID" not in os.environ:  # in a job it may be what is wrong
        warnings.filterwarnings("ignore", message="The `srun` command is available")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_for_users)


def _is_for_users(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_LINES)
