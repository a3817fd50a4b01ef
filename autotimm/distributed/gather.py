"""Collect values from all ranks."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def from_all_ranks(value: Any) -> list[Any]:
    """The values of all ranks, by rank. All ranks call it; a single process gets its own value."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
