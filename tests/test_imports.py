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
    "openmp",
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
# huggingface_hub comes with timm.
MODELS_NEED = {
    *("huggingface_hub", "torch", "torchvision", "timm", "numpy", "safetensors", "xxhash"),
}
BESIDE = {"datamodule.py", "watch.py"}  # the data module and the callback that it brings


@cache
def imported(path: Path, at_start: bool = False) -> list[str]:
    """The names that a module imports; ``a.b`` and ``a.b.c`` for ``from a.b import c``.

    Args:
        path: in the package.
        at_start: without what functions import once they run, and what type checkers alone need.
    """
    names, ahead = [], [ast.parse((PACKAGE / path).read_text())]
    while ahead:
        node = ahead.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        ahead += [] if at_start and later else ast.iter_child_nodes(node)
    return names


def part(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


@pytest.mark.parametrize("name", LEVELS)
def test_nothing_imports_what_is_above_it(name: str) -> None:
    for path in (path for path in FILES if part(path) == name):
        for other in imported(path):
            words = other.split(".")
            if words[0] == "autotimm" and len(words) > 1 and words[1] in LEVEL:
                assert LEVEL[words[1]] <= LEVEL[name], f"{path} imports {other}"
                assert {words[1], name} != SIBLINGS, f"{path} imports {other}"


def test_lightning_stays_in_few_places() -> None:
    users = [path for path in FILES if "lightning" in {n.split(".")[0] for n in imported(path)}]
    assert users
    assert [p for p in users if part(p) not in LIGHTNING and p.name not in BESIDE] == []


def test_the_model_needs_no_package_of_the_data_side() -> None:
    """benchmarks/train_step.py runs it on machines with only torch, torchvision and timm."""
    ahead, seen = {path for path in FILES if part(path) == "models"}, set[Path]()
    others = set()
    while ahead:
        seen.add(path := ahead.pop())
        names = imported(path, at_start=True)
        others |= {name.split(".")[0] for name in names} - {"autotimm", *sys.stdlib_module_names}
        ours = [Path(*name.split(".")[1:]) for name in names if name.startswith("autotimm.")]
        files = {name for path in ours for name in (path.with_suffix(".py"), path / "__init__.py")}
        ahead |= files.intersection(FILES) - seen
    assert Path("structures.py") in seen
    assert others == MODELS_NEED


def test_every_module_has_a_level() -> None:
    assert {part(path) for path in FILES} == set(LEVEL)


def test_sharding_starts_without_what_few_data_sets_need() -> None:
    code = "import sys, autotimm.sharding.cli; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert {
        *("torch", "PIL", "cv2", "difflib", "zipfile"),
        *("fractions", "gzip", "random", "shlex", "tempfile", "unicodedata", "numpy.typing"),
        *("autotimm.coco.not_json", "autotimm.coco.other_formats", "autotimm.images.kinds"),
    }.isdisjoint(told.stdout.split())
