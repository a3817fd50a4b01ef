"""Reads images ahead of the caller, as many as their pixels allow."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from autotimm.images.turns import LARGE, return_memory
from autotimm.inference.large import LargeImage
from autotimm.inference.sources import image_of
from autotimm.structures import InputError, PixelRange


class _Read(NamedTuple):
    """An image that was read, or why it cannot be, and the pixels that it holds of the budget."""

    result: np.ndarray | LargeImage | InputError
    pixels: int


def read_ahead(
    items: Iterable[Any],
    threads: int = 4,
    *,
    tiled: bool = False,
    pixel_range: PixelRange = None,
    budget: int = LARGE,
) -> Iterator[np.ndarray | LargeImage | InputError]:
    """Yields the pixels of images in order; threads read ahead while the caller works.

    Memory follows pixels, not files: an image is decoded once it fits into the budget beside those
    that wait for the caller and the one that the caller has, or once it is the only one. The caller
    counts as having an image until it asks for the next.

    Args:
        items: what ``image_of`` takes.
        threads: that read.
        tiled: as in ``image_of``.
        pixel_range: as in ``image_of``.
        budget: pixels that are read ahead.

    Yields:
        The pixels; for an image that cannot be read, the error.
    """
    gate = _Gate(budget)

    def attempt(number: int, item: Any) -> _Read:
        admitted: list[int] = []

        def admit(pixels: int) -> None:
            gate.enter(number, pixels)
            admitted.append(pixels)

        try:
            result: Any = image_of(item, tiled=tiled, pixel_range=pixel_range, admit=admit)
        except InputError as error:
            result = error
        finally:
            if not admitted:  # an array, an image that is read in tiles, or none
                admit(0)
        if isinstance(result, InputError):
            gate.leave(admitted[0])
            return _Read(result, 0)
        if admitted[0] > LARGE:
            return_memory()
        return _Read(result, admitted[0])

    waiting: deque[tuple[Future[_Read], int]] = deque()

    def first() -> Iterator[np.ndarray | LargeImage | InputError]:
        read = waiting.popleft()[0].result()
        yield read.result
        gate.leave(read.pixels)

    pool = ThreadPoolExecutor(threads)
    try:
        for number, item in enumerate(items):
            # An array is in memory already, whether it is admitted or not: a video's frames.
            in_memory = item.size // 3 if isinstance(item, np.ndarray) else 0
            waiting.append((pool.submit(attempt, number, item), in_memory))
            item = None
            while len(waiting) > 2 * threads or sum(size for _, size in waiting) >= budget:
                yield from first()
        while waiting:
            yield from first()
    finally:
        gate.close()
        pool.shutdown(cancel_futures=True)


class _Gate:
    """Admits images to the decoder in their order while their pixels fit into a budget."""

    def __init__(self, budget: int) -> None:
        self._budget, self._held, self._next = budget, 0, 0
        self._closed = False
        self._changed = threading.Condition()

    def enter(self, number: int, pixels: int) -> None:
        """Waits for the turn of an image, numbered from 0, and for room for its pixels.

        Only in turn: a later image would keep the budget from the one that the caller waits for.

        Raises:
            CancelledError: the gate was closed.
        """

        def admitted() -> bool:
            fits = not self._held or self._held + pixels <= self._budget
            return self._closed or (self._next == number and fits)

        with self._changed:
            self._changed.wait_for(admitted)
            if self._closed:
                raise CancelledError
            self._next = number + 1
            self._held += pixels
            self._changed.notify_all()

    def leave(self, pixels: int) -> None:
        """Returns the pixels of an image to the budget."""
        with self._changed:
            self._held -= pixels
            self._changed.notify_all()

    def close(self) -> None:
        """Admits nothing more, because the caller has stopped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
