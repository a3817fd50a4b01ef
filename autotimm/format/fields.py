"""Checks of single values of an untrusted JSON file.

Each returns the value if it is what it has to be, and else raises a ValueError with a short reason.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import orjson

_T = TypeVar("_T")


def kind(value: Any, wanted: type[_T], name: str | None = None) -> _T:
    """Checks that this is an object (dict) or a list; ``name`` is its key, for the message."""
    if not isinstance(value, wanted):
        what = "an object" if wanted is dict else "a list"
        raise ValueError(f"its {name} is not {what}" if name else f"{brief(value)} is not {what}")
    return value


def brief(value: Any) -> str:
    """A value as JSON has it, for a message: not pages of it."""
    shown = "".join(c if c.isprintable() else "?" for c in orjson.dumps(value).decode())
    return shown if len(shown) <= 80 else f"{shown[:80]}..."


def whole(value: Any, least: int | None = 0) -> int:
    """Checks that this is a whole number of 64 bits, and not below ``least``."""
    if type(value) is not int or not (-(2**63) if least is None else least) <= value < 2**63:
        raise ValueError(f"{brief(value)} is not a count or an id")
    return value


def text(value: Any, empty: bool = False) -> str:
    """Checks that this is text, and not empty unless it may be."""
    if not isinstance(value, str) or not (value or empty):
        raise ValueError(f"{brief(value)} is not a name")
    return value


def plain_name(value: Any) -> str:
    """Checks that this is a plain file name: one from elsewhere must not lead out of its folder.

    Raises:
        ValueError: it is not; the message is a short reason.
    """
    if not re.fullmatch(r"[^./\\\0-\x1f][^/\\\0-\x1f]*", text(value)):
        raise ValueError(f"{brief(value)} is not a plain file name")
    return value


def sha256(value: Any) -> str:
    """Checks that this is a checksum in hexadecimal."""
    if not re.fullmatch(r"[0-9a-f]{64}", text(value)):
        raise ValueError(f"{brief(value)} is not a sha256")
    return value


def given_id(value: Any) -> str | float | None:
    """Checks that this is an id that the source gave and that is no whole number, or None."""
    if value is not None and not isinstance(value, str) and type(value) is not float:
        raise ValueError(f"{brief(value)} is no given_id")
    return value
