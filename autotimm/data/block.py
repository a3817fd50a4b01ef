"""Blocks of shared memory that a worker fills with a batch, and reuses after the batch is freed.

A batch of 16 images takes 25 MB, and allocating new shared memory for it takes a worker several
times longer than filling it. So a worker keeps its blocks. When the main process no longer holds
any view of a block, it sets a byte in the block, and the worker may fill the block again. A batch
that the main process keeps stays intact; the worker then allocates further blocks, and drops idle
ones when there are many.
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
"""Key -> dtype and shape of an array."""
_ALIGNED = 64  # bytes: arrays begin at multiples of this
_STATE = 0  # the byte of a shared block that holds its state, one of the following
_FREE, _HELD, _LOST = range(3)  # lost: the main process has freed it, but a fork may still use it
_IDLE = 8  # free blocks that a worker keeps
_made: list[Tensor] = []  # the shared blocks of this worker
_forks = 0  # forks of this process; each counts twice


class Block:
    """Arrays in one piece of memory, which can be sent to a process and pinned as a whole.

    Args:
        memory: [bytes] uint8.
        shapes: of the arrays, in the order in which they lie in the memory.
    """

    def __init__(self, memory: Tensor, shapes: Shapes) -> None:
        self._memory, self._shapes = memory, shapes
        self._shared: np.ndarray | None = None

    @classmethod
    def of(cls, shapes: Shapes) -> Block:
        """Makes a block for arrays of these shapes, uninitialised; a worker's is shared memory."""
        size = _ALIGNED + sum(_room(*kind) for kind in shapes.values())
        if get_worker_info() is None:
            return cls(torch.from_numpy(buffers.empty((size,))), shapes)
        return cls(_shared_memory(size)[:size], shapes)  # the slice is what gets pinned

    def tensors(self) -> dict[str, Tensor]:
        """The arrays, as views of the memory."""
        found, start = {}, _ALIGNED
        for key, (kind, shape) in self._shapes.items():
            end = start + math.prod(shape) * np.dtype(kind).itemsize
            if self._shared is None:
                part = self._memory[start:end]
            else:  # views of this NumPy array keep it alive, and with it the block's state
                part = torch.from_numpy(self._shared[start:end])
            found[key] = part.view(getattr(torch, kind)).view(shape)
            start += _room(kind, shape)
        return found

    def pin_memory(self, device: Any = None) -> Block:
        """A copy in page-locked memory; DataLoader calls this method."""
        return Block(self._memory.pin_memory(), self._shapes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self._memory, self._shapes)


def _received(memory: Tensor, shapes: Shapes) -> Block:
    """Unpickles a block that a worker has sent."""
    block = Block(memory, shapes)
    block._shared = memory.numpy()
    # Through NumPy, because an inference tensor can only be written to in inference mode.
    weakref.finalize(block._shared, _release, memory.numpy(), os.getpid(), _forks).atexit = False
    return block


def _release(memory: np.ndarray, process: int, forks: int) -> None:
    if os.getpid() == process:  # a fork must not free what its parent may still use
        memory[_STATE] = _FREE if forks == _forks else _LOST


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):  # before and after, as a thread may receive a block meanwhile
    os.register_at_fork(before=_count_fork, after_in_parent=_count_fork)


def _shared_memory(size: int) -> Tensor:
    """Returns shared memory of this worker, [size or more] uint8, and marks it as held."""
    states = [(memory, int(memory[_STATE])) for memory in _made]
    held = [memory for memory, state in states if state == _HELD]
    free = sorted((memory for memory, state in states if state == _FREE), key=len)
    if free and len(free[-1]) >= size:
        memory = free.pop()
    else:
        del free[:1]  # the smallest one is replaced
        memory = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
    memory[_STATE] = _HELD
    _made[:] = [*held, *free[-_IDLE:], memory]
    return memory


def _room(kind: str, shape: tuple[int, ...]) -> int:
    """The bytes from the beginning of an array to the beginning of the next one."""
    return -(-math.prod(shape) * np.dtype(kind).itemsize // _ALIGNED) * _ALIGNED
