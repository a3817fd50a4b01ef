"""Annotation files and image folders that flags name, instead of one folder with a layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autotimm.coco.layouts import Split
from autotimm.coco.split_names import short_name, stem_of
from autotimm.structures import InputError


def paired(files: Sequence[str], folders: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs each file of ``--annotations`` with its folder of ``--images``: in order, or all with
    one.

    Raises:
        InputError: there are neither as many folders as files nor one.
    """
    if len(folders) not in (1, len(files)):
        raise InputError(
            f"--images: {len(folders)} folders for {len(files)} files of --annotations; give one "
            "for each, in the same order, or one for all"
        )
    return list(zip(files, folders if len(folders) > 1 else [*folders] * len(files), strict=True))


def joined_split(files: Sequence[str], folders: Sequence[str]) -> Split:
    """The split of files that are joined, called like the first one.

    Raises:
        InputError: as from ``paired``.
    """
    first, *more = [(Path(file), Path(folder)) for file, folder in paired(files, folders)]
    name = short_name(stem_of(first[0]).removeprefix("instances_"))
    return Split(name, *first, tuple(more))
