"""Trying again: requests that failed, and what is not there yet.

Invariant: nothing here goes on for ever: requests are made a number of times, and what is waited
for is waited for so many seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Retry:
    """How a request to a server is tried.

    Attributes:
        attempts: how often, at most.
        wait: seconds before the second try; they double with each.
        stall: seconds without a byte after which a download counts as failed.
    """

    attempts: int = 5
    wait: float = 1.0
    stall: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError("at least one attempt is needed")

    def tries(self, final: bool) -> str:
        """How a message about a failure goes on; after a final one no further tries were made."""
        return "" if final else f" after {self.attempts} tries"


def retried(attempt: Callable[[], _T], retry: Retry, is_final: Callable[[Exception], bool]) -> _T:
    """Makes a request as often as it may be tried.

    Args:
        attempt: makes the request.
        retry: how often, and how long to wait in between.
        is_final: whether an error of ``attempt`` is one that trying again will not help against.

    Raises:
        Exception: the first final error of ``attempt``, or else its last.
    """
    for number in range(retry.attempts - 1):
        try:
            return attempt()
        # Libraries for servers raise errors of their own, and there is no base class for them.
        except Exception as error:
            if is_final(error):
                raise
        time.sleep(retry.wait * 2**number)
    return attempt()


def poll(look: Callable[[], _T], patience: float, pause: float, longest: float = 0.0) -> _T:
    """Looks again and again, at least once, until there is something.

    Args:
        look: returns what is there; something that is false for nothing.
        patience: seconds after which no further look is taken.
        pause: seconds between the first two looks.
        longest: where it is larger, pauses grow by a half each time, up to so many seconds.

    Returns:
        What the last look found.
    """
    end = time.monotonic() + patience
    while not (found := look()) and time.monotonic() <= end:
        time.sleep(pause)
        pause = max(pause, min(1.5 * pause, longest))
    return found
