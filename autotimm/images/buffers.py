"""Large arrays in memory that was used before, because fresh memory is slow.

The system hands out memory page by page, zeroed, and takes it back as soon as it is freed: for an
image of a megabyte that takes longer than resizing it. So memory that nobody holds any more is used
again, unless so much of it lies idle that it was needed once rather than batch after batch. An
array counts as held as long as Python does, or a tensor made of it by ``torch.from_numpy``, or any
view.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

# Bytes: below, fresh memory is fast; above, idle memory would take too much.
_LEAST, _MOST = 1 << 17, 1 << 27
_ROOMY = 4  # times what is asked for: larger ones are left to larger arrays
_IDLE = 1 << 29  # bytes that may wait for use; a batch of 256 images has 300 MB

_buffers: list[np.ndarray] = []
_lock = threading.Lock()


def empty(shape: tuple[int, ...], dtype: DTypeLike = np.uint8) -> np.ndarray:
    """Like ``np.empty``, where that can be in memory that an earlier such array had."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not _LEAST <= size <= _MOST:
        return np.empty(shape, dtype)
    with _lock:
        return _buffer(size)[:size].view(dtype).reshape(shape)


def _buffer(size: int) -> np.ndarray:
    """A buffer that is not in use, or a new one, which may replace one that is too small."""
    # Two hold it, the list and this call's argument; a third is a view.
    idle = [i for i in range(len(_buffers)) if sys.getrefcount(_buffers[i]) <= 2]
    for place in idle:
        if size <= len(_buffers[place]) <= _ROOMY * size:
            found = _buffers[place]
            idle.remove(place)
            break
    else:
        found = np.empty(size, np.uint8)
        too_small = [i for i in idle if len(_buffers[i]) < size]
        if too_small:
            idle.remove(too_small[-1])
            _buffers[too_small[-1]] = found
        else:
            _buffers.append(found)
    waiting = sum(len(_buffers[i]) for i in idle)
    while waiting > _IDLE:
        waiting -= len(_buffers.pop(idle.pop()))  # the last, so that the others keep their places
    return found
