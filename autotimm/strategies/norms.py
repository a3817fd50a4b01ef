"""Keep the running statistics of batch norms equal on all ranks, as DDP does and sharding
strategies do not."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn


def from_first_rank(module: nn.Module) -> None:
    """Broadcast the first rank's buffers, so that all ranks evaluate what a checkpoint holds.

    It does nothing in a process of its own.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    for buffer in module.buffers():
        if buffer.numel():
            dist.broadcast(buffer, 0)
