"""Fixtures that several test files use."""

from __future__ import annotations

import os
import threading
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


@pytest.fixture
def own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the threads that other tests left behind (fsspec's, a DataLoader's).

    Beside a thread workers are spawned rather than forked, and what a test defines for them inside
    itself cannot be sent to those.
    """
    others = {*threading.enumerate()} - {threading.current_thread()}
    every = threading.enumerate
    monkeypatch.setattr(threading, "enumerate", lambda: [t for t in every() if t not in others])
    monkeypatch.setattr(threading, "active_count", lambda: len(threading.enumerate()))
