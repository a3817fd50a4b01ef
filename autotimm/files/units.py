"""Byte counts and other numbers as people write and read them."""

from __future__ import annotations

import re

from autotimm.structures import InputError, brief


def byte_count(name: str, value: int | str) -> int:
    """Parses a number of bytes: 1000000, "512MiB", "1 GB", "1.5G", "100kb".

    Args:
        name: the option's name, for the error message.
        value: 1 or more; k, M, G and T are powers of 1000, followed by an i of 1024.

    Raises:
        InputError: the value is not such a number.
    """
    amount = r"([0-9]{1,15}(?:\.[0-9]{1,15})?) *(?:([kMGT])(i?))?B?"
    text = value.strip() if isinstance(value, str) else brief(value)
    match = re.fullmatch(amount, text, re.ASCII | re.IGNORECASE)
    count = 0
    if match and not isinstance(value, bool | float):
        from fractions import Fraction  # exact; few commands give a number of bytes

        power = " KMGT".index((match[2] or " ").upper())
        count = int(Fraction(match[1]) * (1024 if match[3] else 1000) ** power)
    if not count:
        raise InputError(f"{name}: 512MiB, 1GB or a number of bytes, not {brief(value)}")
    return count


def byte_text(count: int) -> str:
    """Formats a number of bytes for people, as in "1.5 GB"; units are powers of 1000."""
    for unit, power in (("TB", 4), ("GB", 3), ("MB", 2), ("kB", 1)):
        if count >= 1000**power:
            return f"{count / 1000**power:.3g} {unit}"
    return f"{count} B"


def counted(number: int, noun: str) -> str:
    """A number of things: ``1 image``, ``2,000 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
