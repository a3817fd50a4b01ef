"""Batch norm's running statistics, which DDP keeps alike on all ranks and sharding strategies do
not."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn


def from_first_rank(module: nn.Module) -> None:
    """Gives every rank the first one's buffers, so that all evaluate what a checkpoint holds."""
    for buffer in module.buffers():
        if buffer.numel():
            dist.broadcast(buffer, 0)
