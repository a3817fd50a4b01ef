"""Keeps PIL from warning while an image is read, in any number of threads."""

from __future__ import annotations

import threading
import warnings


class _Quiet:
    """Nothing warns while any thread is inside the block.

    ``warnings.catch_warnings`` alone is for one thread: of two that overlap, the one that came last
    puts back what the first had set, and nothing would warn ever after.
    """

    def __init__(self) -> None:
        self._lock, self._within = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._caught = warnings.catch_warnings(action="ignore")
                self._caught.__enter__()
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                self._caught.__exit__(None, None, None)


# One for all: two of them would undo each other, as two of ``catch_warnings`` do.
quiet = _Quiet()
"""What PIL warns of (odd metadata, large images) does not concern the pixels or is checked."""
