"""Large arrays without the price of fresh memory.

The system hands out memory page by page, zeroed, and takes it back as soon as it is freed: for an
image of a megabyte that takes longer than resizing it. So memory that nobody holds any more is used
again. An array counts as held as long as Python does, or a tensor made of it by
``torch.from_numpy``, or any view.
"""

from __future__ import annotations

import math
import sys
import threading

import numpy as np
from numpy.typing import DTypeLike

_LEAST, _MOST = 1 << 17, 1 << 27  # bytes: below, fresh memory is cheap; above, too dear to keep
_ROOMY = 4  # times what is asked for: larger ones are left to larger arrays

_buffers: list[np.ndarray] = []  # as many as were ever held at once
_lock = threading.Lock()


def empty(shape: tuple[int, ...], dtype: DTypeLike = np.uint8) -> np.ndarray:
    """Like ``np.empty``, where that can be in memory that an earlier such array had."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not _LEAST <= size <= _MOST:
        return np.empty(shape, dtype)
    with _lock:
        return _buffer(size)[:size].view(dtype).reshape(shape)


def _buffer(size: int) -> np.ndarray:
    """One that nobody holds, or a new one, in place of one that is too small."""
    too_small = None
    for place in range(len(_buffers)):
        if sys.getrefcount(_buffers[place]) > 2:  # the list and this call's argument: else a view
            continue
        if size <= len(_buffers[place]) <= _ROOMY * size:
            return _buffers[place]
        if len(_buffers[place]) < size:
            too_small = place
    if too_small is not None:
        del _buffers[too_small]
    _buffers.append(np.empty(size, np.uint8))
    return _buffers[-1]
