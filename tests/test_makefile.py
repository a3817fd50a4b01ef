"""The Makefile says what it is about to do before each step that takes minutes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def steps(tmp_path: Path, *variables: str) -> list[str]:
    """The lines that ``make install`` would run in a checkout without an environment."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make here")
    words = [make, "--dry-run", "--always-make", "install", f"VENV={tmp_path / 'venv'}", *variables]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_each_step_of_the_installation_is_announced(tmp_path: Path) -> None:
    lines = steps(tmp_path)
    said = [number for number, line in enumerate(lines) if line.startswith('echo "')]
    assert [lines[number][6] for number in said[:-1]] == ["1", "2", "3"]
    assert "GB" in lines[said[1]] and "GB" in lines[said[2]]
    pips = [number for number, line in enumerate(lines) if " pip install" in line]
    assert [number - 1 in said or number - 2 in said for number in pips] == [True] * 3
    assert not any("--index-url" in line for line in lines)


def test_torch_comes_from_the_index_that_is_given(tmp_path: Path) -> None:
    lines = steps(tmp_path, "TORCH_INDEX=https://host/cpu")
    [torch] = [line for line in lines if "--index-url" in line]
    assert torch.endswith("--index-url https://host/cpu torch torchvision")
