"""Retries and polling, with a fake clock that only ``sleep`` moves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from autotimm.files import answers, retry
from autotimm.files.retry import Retry, poll, retried, tries_of


class Clock:
    """Replaces the module ``time``."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class FinalError(Exception):
    pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(retry, "time", clock)
    return clock


class Server:
    """Raises its errors one after the other, then answers; counts the requests."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors: Iterator[BaseException] = iter(errors)
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        for error in self.errors:
            raise error
        return "answer"


def is_final(error: Exception) -> bool:
    return isinstance(error, FinalError)


def test_waits_double_between_retries(clock: Clock) -> None:
    server = Server(OSError("1"), OSError("2"), OSError("3"))
    assert retried(server, Retry(attempts=4, wait=3), is_final) == "answer"
    assert server.asked == 4 and clock.slept == [3, 6, 12]


def test_the_last_error_is_raised_at_once_after_the_last_try(clock: Clock) -> None:
    errors = [OSError(str(n)) for n in range(9)]
    server = Server(*errors)
    with pytest.raises(OSError, match="2") as raised:
        retried(server, Retry(attempts=3, wait=1), is_final)
    assert raised.value is errors[2]
    assert server.asked == 3 and clock.slept == [1, 2]
    with pytest.raises(OSError, match="3"):
        retried(server, Retry(attempts=1), is_final)
    assert clock.slept == [1, 2]


def test_a_final_error_ends_the_tries(clock: Clock) -> None:
    server = Server(OSError(), FinalError(), OSError())
    with pytest.raises(FinalError):
        retried(server, Retry(attempts=5, wait=1), is_final)
    assert server.asked == 2 and clock.slept == [1]


def test_ctrl_c_ends_the_tries(clock: Clock) -> None:
    server = Server(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        retried(server, Retry(), is_final)
    assert server.asked == 1 and not clock.slept


def test_the_policy_of_requests() -> None:
    assert Retry() == Retry(attempts=None, wait=1, stall=60, minutes=10)
    for bad in ({"attempts": 0}, {"minutes": -1}, {"minutes": float("nan")}):
        with pytest.raises(ValueError, match=r"at least one attempt|0 or more"):
            Retry(**bad)


def test_an_outage_of_minutes_is_outlasted(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    server = Server(*[OSError("503\nmore")] * 12)
    assert retried(server, Retry(), is_final, what="https://host/a") == "answer"
    assert clock.slept == [1, 2, 4, 8, 16, 32, *[60] * 6]
    told = [record.getMessage() for record in caplog.records]
    assert told == ["https://host/a: 503: trying again for 597 seconds"]


def test_the_tries_end_with_the_minutes(clock: Clock) -> None:
    with pytest.raises(OSError, match="down") as raised:
        retried(Server(*[OSError("down")] * 99), Retry(minutes=10), is_final)
    assert sum(clock.slept) <= 600 < sum(clock.slept) + 60
    assert tries_of(raised.value) == " after 15 tries in 9 minutes"
    with pytest.raises(OSError, match="down") as raised:
        retried(Server(*[OSError("down")] * 9), Retry(minutes=0), is_final)
    assert tries_of(raised.value) == ""


def test_a_server_may_ask_to_wait(clock: Clock) -> None:
    server = Server(OSError("100"), OSError("0"), OSError("100"))
    asked = lambda error: float(str(error))  # noqa: E731
    assert retried(server, Retry(), is_final, asked) == "answer"
    assert clock.slept == [100, 2, 100]
    with pytest.raises(OSError, match="3600"):  # at once: the minutes do not reach as far
        retried(Server(OSError("3600")), Retry(), is_final, asked)
    assert len(clock.slept) == 3


def test_poll_does_not_wait_for_what_is_there(clock: Clock) -> None:
    assert poll(lambda: "there", patience=0, pause=1) == "there"
    assert not clock.slept


def test_poll_finds_what_comes_in_time(clock: Clock) -> None:
    assert poll(lambda: clock.now >= 102 and "there", patience=5, pause=0.5) == "there"
    assert clock.slept == [0.5] * 4


def test_poll_gives_up_after_its_patience(clock: Clock) -> None:
    assert poll(lambda: None, patience=5, pause=0.5) is None
    assert clock.slept == [0.5] * 11


def test_pauses_grow_to_the_longest(clock: Clock) -> None:
    assert poll(lambda: clock.now >= 110, patience=99, pause=1, longest=3)
    assert clock.slept == [1, 1.5, 2.25, 3, 3]


@pytest.mark.parametrize(
    "after", ["Mon, 01 Nov 99999999999999999999 10:00:00 GMT", "9" * 400, "x", "1 2 3", ""]
)
def test_an_odd_retry_after_is_no_error(after: str) -> None:
    assert answers.asked_wait({"Retry-After": after}) >= 0
