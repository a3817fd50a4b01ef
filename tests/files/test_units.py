"""Byte counts as people write and read them."""

from __future__ import annotations

from typing import Any

import pytest

from autotimm.files.units import byte_count, byte_text, counted
from autotimm.structures import InputError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7),
        ("1234", 1234),
        ("512MiB", 536870912),
        ("1GB", 1000000000),
        ("1 Gi", 1073741824),
        ("200k", 200000),
        ("3KB", 3000),
        ("2TB", 2000000000000),
        ("1.5GB", 1500000000),
        ("0.5 kib", 512),
        ("100kb", 100000),
        ("999999999999999TiB", 999999999999999 * 2**40),
    ],
)
def test_bytes(value: int | str, expected: int) -> None:
    assert byte_count("--size", value) == expected


@pytest.mark.parametrize(
    "value", ["", "0", 0, -1, "-5", "1.GB", ".5G", "0.0001k", "GB", "1PB", "9" * 16, True, 1.0]
)
def test_what_is_no_number_of_bytes(value: Any) -> None:
    with pytest.raises(InputError, match=r"^--size: 512MiB, 1GB or a number of bytes, not "):
        byte_count("--size", value)


def test_bytes_as_people_read_them() -> None:
    amounts = (999, 1000, 1_234_567, 5_200_000_000, 2_470_000_000_000)
    assert [byte_text(n) for n in amounts] == ["999 B", "1 kB", "1.23 MB", "5.2 GB", "2.47 TB"]


def test_things_are_counted_in_the_singular_and_plural() -> None:
    assert [counted(n, "image") for n in (0, 1, 2_000)] == ["0 images", "1 image", "2,000 images"]
