"""Threads that wait for each other sleep, unless the user says how they wait."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_LOADS = "import ctypes; ctypes.CDLL({!r}); "
"""What an import of torch does first, in a hundredth of the time."""


def libgomp() -> str:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    found = sorted(Path(spec.origin).parent.glob("lib/libgomp*"))
    if not found:
        pytest.skip("this torch brings another OpenMP")
    return str(found[0])


def turns(code: str, **given: str) -> int:
    """How often a waiting thread looks before it sleeps, as libgomp itself says."""
    from autotimm.openmp import _SETTINGS

    env = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": os.pathsep.join(sys.path), **given},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    assert done.returncode == 0 and found is not None, done.stderr
    return int(found[1])


def test_threads_sleep_while_they_wait() -> None:
    load = _LOADS.format(libgomp())
    assert turns(load) > 10_000  # of itself it keeps the core
    assert turns(f"import autotimm; {load}") == 0


@pytest.mark.parametrize(
    "given", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "77"}, {"KMP_BLOCKTIME": "1"}]
)
def test_what_the_user_sets_stays(given: dict[str, str]) -> None:
    load = _LOADS.format(libgomp())
    assert turns(f"import autotimm; {load}", **given) == turns(load, **given) != 0


@pytest.mark.parametrize(("before", "late"), [("", False), ("sys.modules['torch'] = sys; ", True)])
def test_an_import_after_torch_comes_late(before: str, late: bool) -> None:
    load = _LOADS.format(libgomp())
    code = f"import sys; {before}import autotimm; from autotimm import openmp; {load}"
    turns(f"{code}assert openmp.was_late() == {late}")
