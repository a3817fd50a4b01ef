"""Retries of failed requests, and polling for something that is not there yet.

Invariant: every loop ends: a request has a number of attempts, and a poll a number of seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how patiently to try a request to a server.

    Attributes:
        attempts: the largest number of tries, 1 or more.
        wait: seconds before the second try; the wait doubles before each further one.
        stall: seconds without a byte after which a download counts as failed.
    """

    attempts: int = 5
    wait: float = 1.0
    stall: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError("at least one attempt is needed")

    def tries(self, final: bool) -> str:
        """The words that a failure message adds; none after a final error, which ends the tries."""
        return "" if final else f" after {self.attempts} tries"


def retried(attempt: Callable[[], _T], retry: Retry, is_final: Callable[[Exception], bool]) -> _T:
    """Makes a request until it succeeds, fails for good, or has used up its tries.

    Args:
        attempt: makes the request.
        retry: how often to try, and how long to wait in between.
        is_final: tells whether an error of ``attempt`` is one that a retry cannot cure.

    Raises:
        Exception: the first final error of ``attempt``, or else its last error.
    """
    for number in range(retry.attempts - 1):
        try:
            return attempt()
        # The libraries raise errors of their own, which have no base class in common.
        except Exception as error:
            if is_final(error):
                raise
        time.sleep(retry.wait * 2**number)
    return attempt()


def poll(look: Callable[[], _T], patience: float, pause: float, longest: float = 0.0) -> _T:
    """Calls ``look``, at least once, until it returns a true value or the time is up.

    Args:
        look: looks for something, and returns a false value while it is not there.
        patience: seconds after which to stop.
        pause: seconds between the first two calls.
        longest: seconds up to which the pause grows, by a half each time; 0 keeps it as it is.

    Returns:
        The value of the last call, true or not.
    """
    end = time.monotonic() + patience
    while not (found := look()) and time.monotonic() <= end:
        time.sleep(pause)
        pause = max(pause, min(1.5 * pause, longest))
    return found
