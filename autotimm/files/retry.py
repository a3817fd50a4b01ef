"""Retries of failed requests, and polling for something that is not there yet.

Invariant: every loop ends: a request has a number of minutes, and a poll a number of seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")

_LONGEST = 60.0  # seconds up to which the wait between two tries grows
_REPORT_FROM = 5.0  # seconds of waiting, after which a line names the server's answer


@dataclass(frozen=True, slots=True)
class Retry:
    """How long and how patiently to try a request to a server.

    Attributes:
        attempts: the largest number of tries, 1 or more; None for as many as the minutes allow.
        wait: seconds before the second try; the wait doubles before each further one, up to a
            minute. A server that asks for a longer one (Retry-After) gets it.
        stall: seconds without progress after which a download counts as failed.
        minutes: how long to try. Object stores have outages of minutes.
    """

    attempts: int | None = None
    wait: float = 1.0
    stall: float = 60.0
    minutes: float = 10.0

    def __post_init__(self) -> None:
        if self.attempts is not None and self.attempts < 1:
            raise ValueError("at least one attempt is needed")
        if not self.minutes >= 0:
            raise ValueError("minutes must be 0 or more")


def retried(
    attempt: Callable[[], _T],
    retry: Retry,
    is_final: Callable[[Exception], bool],
    asked_wait: Callable[[Exception], float] = lambda _: 0.0,
    what: str = "",
) -> _T:
    """Makes a request until it succeeds, fails for good, or has used up its tries.

    Args:
        attempt: makes the request.
        retry: how long to try, and how long to wait in between.
        is_final: returns whether an error of ``attempt`` is one that a retry cannot cure.
        asked_wait: the seconds that the server asks the client to wait after an error.
        what: the name of what is requested, to report a long wait by.

    Raises:
        Exception: the first final error of ``attempt``, or else its last error. The latter has an
            attribute ``tries``, such as " after 7 tries in 10 minutes", for messages.
    """
    begun, waited, wait = time.monotonic(), 0.0, retry.wait
    number, reported = 1, False
    while True:
        try:
            return attempt()
        # The libraries raise errors of their own, which have no base class in common.
        except Exception as error:
            if is_final(error):
                raise
            pause = max(wait, asked_wait(error))
            left = begun + 60 * retry.minutes - time.monotonic()
            if number == retry.attempts or left < pause:
                error.tries = _tries(number, time.monotonic() - begun)  # type: ignore[attr-defined]
                raise
            if not reported and what and waited + pause >= _REPORT_FROM:
                reported = True
                reason = str(error).strip().split("\n")[0] or type(error).__name__
                logging.getLogger("autotimm").warning(
                    "%s: %s: trying again for %.0f seconds", what, reason, left
                )
        time.sleep(pause)
        waited += pause
        wait = min(2 * wait, max(_LONGEST, retry.wait))
        number += 1


def tries_of(error: Exception) -> str:
    """The words that a failure message adds: how often and how long ``retried`` tried."""
    return getattr(error, "tries", "")


def _tries(number: int, seconds: float) -> str:
    if number == 1:
        return ""
    took = f" in {seconds / 60:.0f} minutes" if seconds >= 90 else ""
    return f" after {number} tries{took}"


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
