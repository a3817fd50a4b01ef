"""What was probably meant by a path that is not there, and by a path that no flag stands before."""

from __future__ import annotations

import difflib
from collections.abc import Container
from pathlib import Path

from autotimm.files import urls

_CONFIGS = (".yaml", ".yml")
_WEIGHTS = (".ckpt", ".safetensors")
_LAUNCH = "launch"  # the folder of the checkout that has the configs


def near_path(text: str) -> str:
    """`` (did you mean PATH?)`` for a file or folder of nearly the same name, else ``""``.

    Args:
        text: a path at which there is nothing.
    """
    path = Path(text)
    try:
        beside = sorted(one.name for one in path.parent.iterdir() if one.name[0] != ".")
    except (OSError, ValueError):  # no such folder, or a null character
        return ""
    if near := difflib.get_close_matches(path.name, beside, 1, 0.75):
        return _meant(path.with_name(near[0]))
    return ""


def near_config(text: str) -> str:
    """As :func:`near_path`, for a config: its suffix or its folder may be missing or another."""
    path = Path(text)
    names = [path.with_suffix(suffix) for suffix in _CONFIGS if path.name]
    for one in (*names, Path(_LAUNCH, path.name), *(Path(_LAUNCH, name.name) for name in names)):
        if one.is_file():
            return _meant(one)
    return near_path(text)


def near_use(word: str, flags: Container[str]) -> str:
    """`` (did you mean --x WORD?)`` for a word that no flag stands before, else ``""``.

    Args:
        word: a path, perhaps.
        flags: those of the verb.
    """
    path = Path(word)
    best = path / "checkpoints" / "best.ckpt"
    uses = [
        ("--config", path.suffix in _CONFIGS, path),
        ("--checkpoint", path.suffix in _WEIGHTS, path),
        ("--checkpoint", best.exists(), best),
        ("--ckpt_path", path.suffix in _WEIGHTS, path),
        ("--data", path.is_dir() or bool(urls.kind(word)), word),
    ]
    for flag, fits, value in uses:
        if fits and flag in flags:
            return f" (did you mean {flag} {value}?)"
    return ""


def _meant(path: Path) -> str:
    return f" (did you mean {path}?)"
