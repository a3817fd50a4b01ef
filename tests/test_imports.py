"""Imports go one way, so that each part can be read, tested and replaced without those above it."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "autotimm"
LEVELS = [
    "torchmetrics_import",
    "redaction",
    "structures",
    "plain",
    "near_names",
    "lightning_private",
    "files",
    "images",
    "coco",
    "format",
    "visualize",
    "streaming",
    "sharding",
    "models",
    "augmentation",
    "data",
    "evaluation",
    "tasks",
    "distributed",
    "outputs",
    "checkpoints",
    "strategies",
    "setup",
    "training",
    "inference",
    "export",
    "doctor",
    "cli",
    "__main__",
]
"""From below to above: each part has a level of its own, so that no two import each other."""
SIBLINGS = {"streaming", "sharding"}  # one reads what the other writes; both know the format alone
LEVEL = {name: level for level, name in enumerate(LEVELS)}
FILES = sorted(
    p.relative_to(PACKAGE)
    for p in PACKAGE.rglob("*.py")
    if p.parent != PACKAGE or p.stem != "__init__"
)


LIGHTNING = {
    *("lightning_private", "tasks", "distributed", "outputs", "checkpoints"),
    *("strategies", "setup", "training", "cli"),
}
BESIDE = {"datamodule.py", "watch.py"}  # the data module and the callback that it brings


@cache
def imported(path: Path) -> list[str]:
    """The names that a module imports; ``a.b`` and ``a.b.c`` for ``from a.b import c``."""
    names = []
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def part(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_imports_what_is_above_it(path: Path) -> None:
    for name in imported(path):
        words = name.split(".")
        if words[0] == "autotimm" and len(words) > 1 and words[1] in LEVEL:
            assert LEVEL[words[1]] <= LEVEL[part(path)], f"{path} imports {name}"
            assert {words[1], part(path)} != SIBLINGS, f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_lightning_stays_in_few_places(path: Path) -> None:
    if any(name.split(".")[0] == "lightning" for name in imported(path)):
        assert part(path) in LIGHTNING or path.name in BESIDE


def test_every_module_has_a_level() -> None:
    assert {part(path) for path in FILES} == set(LEVEL)


def test_sharding_starts_without_torch() -> None:
    code = "import sys, autotimm.sharding.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
