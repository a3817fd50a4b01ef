"""The one line of an InputError, and values in it."""

from __future__ import annotations

from typing import Any

from autotimm.structures import InputError, brief


def test_a_message_is_one_line_that_moves_no_cursor() -> None:
    said = str(InputError("a.json: class 'x\ny\x1b[2J\udcff' é日本"))
    assert said == "a.json: class 'x y\\x1b[2J\\udcff' é日本"


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    said = str(InputError("a.json: " + "x" * 10**6 + ": give another"))
    assert len(said) < 4000
    assert said.startswith("a.json: xxx") and said.endswith("xxx: give another")


def test_values_are_brief() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    assert brief([1.5, "a", None]) == "[1.5, 'a', None]"
    assert len(brief(deep)) < 100
    assert len(brief("x" * 10**6)) < 100
    assert len(brief(10**5000)) < 100  # Python itself writes no such number
