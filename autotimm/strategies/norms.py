"""Keep the running statistics of batch norms equal on all ranks, as DDP does and sharding
strategies do not."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn


def from_first_rank(module: nn.Module) -> None:
    """Broadcast the first rank's buffers, so that all ranks evaluate what a checkpoint holds."""
    for buffer in module.buffers():
        if buffer.numel():
            dist.broadcast(buffer, 0)
