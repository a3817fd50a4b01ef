"""The memory of a batch: filled by a worker, used by the main process, then filled again.

A batch of 16 images has 25 MB. To have the system find and clear as much shared memory for every
batch takes a worker several times longer than to fill it. So a worker keeps the blocks that it has
made, and fills one again once nobody in the main process holds any of it, which the main process
says with a byte of the block. Batches that are kept stay as they are; the worker makes more blocks
then, and gives up those that are idle once there are many.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from autotimm.images import buffers

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Key -> type and shape of an array."""
_ALIGNED = 64  # bytes: arrays begin at multiples of this
_STATE = 0  # the byte of a shared block that says whether it is in use:
_FREE, _HELD, _LOST = range(3)  # lost is what the main process let go of and a fork of it may have
_IDLE = 8  # blocks that a worker keeps beside those in use
_made: list[Tensor] = []  # the shared blocks of this worker
_forks = 0  # of this process, twice counted


class Block:
    """Arrays that lie in one piece of memory, so that they are sent and pinned in one piece.

    Args:
        memory: [bytes] uint8.
        shapes: of the arrays, which lie in it one after another.
    """

    def __init__(self, memory: Tensor, shapes: Shapes) -> None:
        self._memory, self._shapes = memory, shapes
        self._shared: np.ndarray | None = None

    @classmethod
    def of(cls, shapes: Shapes) -> Block:
        """A block for such arrays, filled with anything; in shared memory if this is a worker."""
        size = _ALIGNED + sum(_room(*kind) for kind in shapes.values())
        if get_worker_info() is None:
            return cls(torch.from_numpy(buffers.empty((size,))), shapes)
        return cls(_shared_memory(size)[:size], shapes)  # no more than that is to be pinned

    def tensors(self) -> dict[str, Tensor]:
        """The arrays, as views of the memory."""
        found, start = {}, _ALIGNED
        for key, (kind, shape) in self._shapes.items():
            end = start + math.prod(shape) * np.dtype(kind).itemsize
            if self._shared is None:
                part = self._memory[start:end]
            else:  # as long as there is a view of it, it is held
                part = torch.from_numpy(self._shared[start:end])
            found[key] = part.view(getattr(torch, kind)).view(shape)
            start += _room(kind, shape)
        return found

    def pin_memory(self, device: Any = None) -> Block:
        """A copy in page-locked memory; DataLoader asks for it."""
        return Block(self._memory.pin_memory(), self._shapes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self._memory, self._shapes)


def _received(memory: Tensor, shapes: Shapes) -> Block:
    """The block that a worker sent."""
    block = Block(memory, shapes)
    block._shared = memory.numpy()
    # Through NumPy: a tensor of inference mode may be written to in that mode only.
    weakref.finalize(block._shared, _let_go, memory.numpy(), os.getpid(), _forks).atexit = False
    return block


def _let_go(memory: np.ndarray, process: int, forks: int) -> None:
    if os.getpid() == process:  # not a fork of it, which may still need what the fork does not
        memory[_STATE] = _FREE if forks == _forks else _LOST


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):  # both: nothing is received between the count and the fork
    os.register_at_fork(before=_count_fork, after_in_parent=_count_fork)


def _shared_memory(size: int) -> Tensor:
    """[size or more] uint8 of this worker's shared memory, in use from now on."""
    states = [(memory, int(memory[_STATE])) for memory in _made]
    held = [memory for memory, state in states if state == _HELD]
    free = sorted((memory for memory, state in states if state == _FREE), key=len)
    if free and len(free[-1]) >= size:
        memory = free.pop()
    else:
        del free[:1]  # the smallest makes way
        memory = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
    memory[_STATE] = _HELD
    _made[:] = [*held, *free[-_IDLE:], memory]
    return memory


def _room(kind: str, shape: tuple[int, ...]) -> int:
    """The bytes from the beginning of an array to that of the next."""
    return -(-math.prod(shape) * np.dtype(kind).itemsize // _ALIGNED) * _ALIGNED
