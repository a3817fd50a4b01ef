"""Amounts as people write them."""

from __future__ import annotations

import re

from autotimm.structures import InputError


def byte_count(name: str, value: int | str) -> int:
    """Reads a number of bytes: 1000000, "512MiB", "1 GB", "200G".

    Args:
        name: the option, for the message.
        value: 1 or more; k, M, G, T are powers of 1000, with an i of 1024.

    Raises:
        InputError: it is no such number.
    """
    match = re.fullmatch(r"([0-9]{1,15}) *(?:([kKMGT])(i?))?B?", str(value).strip())
    if isinstance(value, bool) or not match or not int(match[1]):
        raise InputError(f"{name}: 512MiB, 1GB or a number of bytes, not {value!r}")
    power = " KMGT".index((match[2] or " ").upper())
    return int(match[1]) * (1024 if match[3] else 1000) ** power
