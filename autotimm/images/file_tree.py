"""All files below an image folder, found by names that are spelled otherwise."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable

from autotimm.images.spellings import decoded, picture_stem

_SEVERAL = "file_name fits several files"
_OF_MASKS = {
    *("ann", "anns", "annotation", "annotations", "gt", "gts", "gtcoarse", "gtfine", "groundtruth"),
    *("label", "labels", "mask", "masks", "seg", "segmentation", "segmentationclass"),
    *("segmentationobject", "segmentations", "panoptic", "semantic"),
}


def holds_masks(folder: str) -> bool:
    """Returns whether a folder's pictures, by its name, are masks, which have the images' names."""
    return not _OF_MASKS.isdisjoint(re.split("[-_. ]", folder.lower()))


class FileTree:
    """All files below a folder, by what their paths and base names become when spelled alike. Those
    in folders of masks are left out beside others: one would pass for an image that is missing."""

    def __init__(self, root: str) -> None:
        self.files: list[str] = []
        masks: list[str] = []
        self.folders: set[str] = set()  # the folder itself is not among them
        # A folder that this user may not read counts as empty; names in it are refused later.
        for place, _, names in os.walk(root):
            folder = os.path.relpath(place, root)
            inner = "" if folder == "." else folder + "/"
            self.folders.add(folder)
            there = masks if any(map(holds_masks, inner.split("/"))) else self.files
            there += [inner + name for name in names]
        self.folders.discard(".")
        if not any(map(picture_stem, self.files)):  # data about masks that people wear
            self.files += masks
        self._paths: dict[Callable[[str], str], dict[str, str | None]] = {}
        self._stems: dict[str, str | None] | None = None
        self._extensions: set[str] = set()  # of pictures
        self._bases: dict[Callable[[str], str], dict[str, str | None]] = {}

    def by_path(self, spelling: Callable[[str], str], path: str) -> str | None:
        """Returns the only file whose path is spelled like this one; None if there is none.

        Raises:
            ValueError: there are several.
        """
        if spelling not in self._paths:
            self._paths[spelling] = _only((spelling(file), file) for file in self.files)
        return _one(self._paths[spelling], spelling(path))

    def by_base(self, spelling: Callable[[str], str], base: str) -> str | None:
        """Returns the only file whose base name is spelled like this one; errors as above."""
        if spelling not in self._bases:
            names = ((spelling(file.rpartition("/")[2]), file) for file in self.files)
            self._bases[spelling] = _only(names)
        return _one(self._bases[spelling], spelling(base))

    def by_stem(self, base: str) -> str | None:
        """Returns the only picture of this base name with any extension; errors as above.

        If other pictures have the extension of the name, this picture is missing, and one with
        another extension may be its mask.
        """
        if self._stems is None:
            named = ((picture_stem(file.rpartition("/")[2]), file) for file in self.files)
            pictures = [(stem, file) for stem, file in named if stem is not None]
            self._stems = _only(pictures)
            self._extensions = {_extension(file) for _, file in pictures}
        stem = picture_stem(base)
        if stem is not None and _extension(base) in self._extensions:
            return None
        return _one(self._stems, decoded(base)) or _one(self._stems, stem or "")


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def _only(named: Iterable[tuple[str, str]]) -> dict[str, str | None]:
    """Files by name; None where several share it."""
    found: dict[str, str | None] = {}
    for name, file in named:
        found[name] = None if name in found else file
    return found


def _one(files: dict[str, str | None], name: str) -> str | None:
    file = files.get(name, "")
    if file is None:
        raise ValueError(_SEVERAL)
    return file or None
