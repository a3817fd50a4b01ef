"""Fixtures that several test files use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(
    os.environ.get("AUTOTIMM_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real COCO data beside the checkout; skips where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real COCO data (set AUTOTIMM_SHARED_DATA to its folder)")
    return SHARED_DATA
