"""Names of splits: what a file or folder is called, and what else that may be called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_SAME = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))
_WORDS = {word for words in _SAME for word in words} | {"trainval", "dev"}


def same_split(wanted: str, names: Iterable[str]) -> str | None:
    """Returns which of the splits is meant; None if none or several can be.

    ``val`` means ``valid`` or ``validation``, too, where there is no ``val``; likewise ``train``
    and ``training``, ``test`` and ``testing``; each in either direction, in any case, and last with
    other words around them: ``Train``, ``train_trashcan``.
    """
    names = list(names)
    if wanted in names:
        return wanted
    words = next((words for words in _SAME if wanted in words), ())
    for spelled in (str, str.lower, lambda name: split_word(name) or ""):
        found = [name for name in names if spelled(name) in words]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def split_names(stems: Sequence[str]) -> list[str]:
    """Names the splits of annotation files by the files' names without their extension.

    ``instances_train2017`` makes ``train``, unless two splits would then share a name.
    """
    full = [stem.removeprefix("instances_") for stem in stems]
    short = [short_name(name) for name in full]
    return [s if short.count(s) == 1 else f for f, s in zip(full, short, strict=True)]


def short_name(name: str) -> str:
    """Returns a name without the digits behind it."""
    return re.sub(r"[-_]?\d+$", "", name) or name


def stem_of(file: Path) -> str:
    """Returns a file's name without ``.json``, ``.gz`` and ``.zip``."""
    return re.sub(r"(\.json)?(\.gz|\.zip)?$", "", file.name, flags=re.IGNORECASE)


def split_word(name: str) -> str | None:
    """Returns the split that a name names, without digits: ``coco_train2017`` is of ``train``."""
    found = [word for word in split_words(name) if word in _WORDS]
    return found[0] if len(found) == 1 else None


def split_words(name: str) -> list[str]:
    """Returns the words of a name that name a split, with and without digits behind."""
    pairs = [(word, re.sub(r"\d+$", "", word)) for word in re.split("[-_. ]", name.lower())]
    return [w for long, short in pairs if short in _WORDS for w in dict.fromkeys((long, short))]
