"""Ids that are no whole numbers of 64 bits: what they are looked up by, and their new numbers."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

from autotimm.coco.checks import as_id, is_text

Key = int | str
"""What an id is looked up by: the number that it is, however it is written, or else its text."""


class InexactIdError(ValueError):
    """An id may have lost digits, as the quick parser makes a float of more than 64 bits."""


def id_key(value: Any, exact: bool) -> Key | None:
    """Returns what an id is looked up by; None if this is no id.

    Args:
        value: as the file has it.
        exact: whether whole numbers of more than 64 bits were kept (``jsontext.parse``).

    Raises:
        InexactIdError: they were not, and this one has lost digits.
    """
    number = as_id(value)
    if number is not None:
        return number
    if type(value) is float and math.isfinite(value):
        if abs(value) >= 2**63 and not exact:
            raise InexactIdError
        return repr(value)
    if type(value) is int:
        return str(value)
    return value.strip() or None if is_text(value) else None


def given_id(value: Any) -> str | float:
    """An id that got a new number, as records keep it: JSON of 64 bits has no larger numbers."""
    return str(value) if type(value) is int else value


def free_ids(used: set[int], count: int) -> list[int]:
    """Returns ids that are not used, of 64 bits: those above the largest, or else the first."""
    above = max(used, default=0) + 1
    if above + count <= 2**63:
        return list(range(above, above + count))
    return list(islice((id_ for id_ in range(1, 2**63) if id_ not in used), count))
