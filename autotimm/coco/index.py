"""COCO folders: finding the splits, reading the annotations, one checked record an image.

Invariants: what cannot be used is left out and counted by kind with examples, never lost silently;
every image file lies inside the image folder; ids are integers; masks are compressed RLEs of the
image's size. A record from here equals the one that a shard holds.

Boxes here are COCO's own x, y, w, h, and category ids the dataset's.
"""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from autotimm.coco.checks import Problems, as_id, check_annotation, is_text
from autotimm.coco.jsontext import NotJSONError, Text, parse
from autotimm.coco.lists import (
    Category,
    Dealt,
    Found,
    deal,
    find_images,
    find_lists,
    read_categories,
)
from autotimm.structures import InputError, Record

__all__ = [
    "Category",
    "CocoIndex",
    "Split",
    "find_splits",
    "label_of",
    "load",
    "split_names",
]


@dataclass(frozen=True, slots=True)
class Split:
    """One part of a COCO folder, such as ``train``; its image folder may be missing."""

    name: str
    annotation_file: Path
    image_folder: Path


@dataclass
class CocoIndex:
    """The images of one split that can be used, in the file's order, and where in the file their
    annotations are: some 100 bytes an image and 16 an annotation, cheap to fork and to pickle.

    Attributes:
        categories: sorted by id.
        problems: what ``load`` found odd.
        image_folder: resolved; every image lies inside it.
    """

    categories: list[Category]
    problems: Problems
    image_folder: str
    _found: Found = field(repr=False)
    _dealt: Dealt = field(repr=False)
    _text: Text = field(repr=False)

    def __len__(self) -> int:
        return len(self._found.names)

    def image_path(self, i: int) -> Path:
        """Returns where image ``i`` lies; ``load`` saw that this is inside the image folder."""
        return Path(self.image_file(i))

    def image_file(self, i: int) -> str:
        """Returns the same as text, for loops in which making a Path takes longer than the rest."""
        return f"{self.image_folder}/{self._found.names[i]}"

    def file_name(self, i: int) -> str:
        """Returns the name of image ``i`` in the image folder: the annotation file's, mended."""
        return self._found.names[i]

    def size(self, i: int) -> tuple[int, int]:
        """Returns width and height of image ``i`` in pixels, as its record has them."""
        width, height = self._found.sizes[i].tolist()
        return width, height

    def sizes(self) -> np.ndarray:
        """Returns width and height of all images, [n, 2] int64, pixels."""
        return self._found.sizes

    def image_id(self, i: int) -> int:
        """Returns the id of image ``i``."""
        return int(self._found.ids[i])

    def annotation_bytes(self, i: int) -> int:
        """Returns about how many bytes the record of image ``i`` takes as JSON.

        An annotation is about as long there as in its file, without line ends and indents, and as
        the runs of its mask on top: some 250 bytes.
        """
        first, last = self._dealt.first[i : i + 2].tolist()
        text = self._dealt.dense * int(self._dealt.lengths[first:last].sum())
        return 100 + 250 * (last - first) + int(text)

    def record(self, i: int, problems: Problems | None = None) -> Record:
        """Makes the checked record of image ``i``: what a shard's ``<key>.json`` holds.

        Args:
            i: 0 to ``len(self) - 1``.
            problems: where annotations that are odd are counted; by default nowhere, as who reads a
                dataset epoch after epoch does not want to count them again.

        Raises:
            InputError: the annotation file has changed since it was loaded, or is gone.
        """
        problems = Problems() if problems is None else problems
        name, (width, height) = self._found.names[i], self.size(i)
        annotations = []
        for raw in self._annotations(i):
            what = f"annotation {raw['id']} of {name}"
            checked = check_annotation(raw, height, width, partial(problems.add, example=what))
            if checked is not None:
                annotations.append(checked)
        return {
            "image_id": self.image_id(i),
            "file_name": name,
            "width": width,
            "height": height,
            "annotations": annotations,
        }

    def _annotations(self, i: int) -> list[dict[str, Any]]:
        """Reads the annotations of an image, ``id`` (made unique) and ``category_id`` integers."""
        dealt = self._dealt
        first, last = dealt.first[i : i + 2].tolist()
        if first == last:
            return []
        pieces = self._text.read_all(
            dealt.starts[first:last].tolist(), dealt.lengths[first:last].tolist()
        )
        try:
            raws: list[dict[str, Any]] = parse(b"[" + b",".join(pieces) + b"]")
        except NotJSONError:
            raise self._text.fault() from None
        for place, raw in enumerate(raws, first):
            new = dealt.renumbered.get(place)
            raw["id"] = as_id(raw["id"]) if new is None else new
            raw["category_id"] = as_id(raw["category_id"])
        return raws


def find_splits(root: Path) -> dict[str, Split]:
    """Finds the splits of a folder in COCO's layout, by name.

    ``annotations/instances_train2017.json`` makes the split ``train`` (trailing digits go, unless
    two splits would then share a name); its images are looked for in ``train2017/``,
    ``images/train2017/``, ``train/``, ``images/train/`` and ``images/``.

    Raises:
        InputError: there is no such folder, or no annotation file in it, or one whose name is no
            text.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    folder = root / "annotations"
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 (names, not paths)
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from None
    files = [folder / name for name in names if re.fullmatch(r"instances_.*\.json", name)]
    if not files:
        raise InputError(
            f"{root}: no annotations/instances_*.json in it; a COCO folder holds "
            "annotations/instances_train.json and the images in train/, the same for val"
        )
    for file in files:
        if not is_text(file.name):
            raise InputError(
                f"{file}: its name is no text in the locale's encoding, "
                f"{sys.getfilesystemencoding()}; rename it, or set PYTHONUTF8=1"
            )
    splits = {}
    for file, name in zip(files, split_names([file.stem for file in files]), strict=True):
        long_name = file.stem.removeprefix("instances_")
        short_name = _short(long_name)
        places = [long_name, f"images/{long_name}", short_name, f"images/{short_name}", "images"]
        image_folder = next((root / p for p in places if (root / p).is_dir()), root / long_name)
        splits[name] = Split(name, file, image_folder)
    return splits


def split_names(stems: Sequence[str]) -> list[str]:
    """Names the splits of annotation files by the files' names without their extension.

    ``instances_train2017`` makes ``train``, unless two splits would then share a name.
    """
    full = [stem.removeprefix("instances_") for stem in stems]
    short = [_short(name) for name in full]
    return [s if short.count(s) == 1 else f for f, s in zip(full, short, strict=True)]


def _short(name: str) -> str:
    return re.sub(r"[-_]?\d+$", "", name) or name


def label_of(categories: Iterable[Category]) -> dict[int, int]:
    """Maps category ids to contiguous labels from 0, by sorted id, used or not."""
    return {id_: label for label, id_ in enumerate(sorted(c.id for c in categories))}


def shown_names(categories: Iterable[Category]) -> list[str]:
    """What to call each label: its category's name, with the id where several share that name."""
    categories = list(categories)
    names = [category.name for category in categories]
    return [
        f"{one.name} ({one.id})" if names.count(one.name) > 1 or not one.name else one.name
        for one in categories
    ]


def load(annotation_file: Path, image_folder: Path) -> CocoIndex:
    """Reads a COCO annotation file and sees that its images are there.

    An image is opened only where the file lacks its size.

    Raises:
        InputError: nothing can go on: a file or folder is missing or unreadable, it is not COCO, it
            has no categories or some that share an id, or none of its images can be used.
    """
    if not Path(image_folder).is_dir():
        raise InputError(f"{image_folder}: no such folder, but {annotation_file} needs its images")
    text = Text(Path(annotation_file))
    problems = Problems()
    collecting = gc.isenabled()
    gc.disable()  # millions of small objects, none of them garbage: collecting doubles the time
    try:
        lists = find_lists(text)
        categories = read_categories(
            chain.from_iterable(lists["categories"].values(text)), text.path
        )
        entries = chain.from_iterable(lists["images"].values(text))
        found, slots = find_images(entries, Path(image_folder), problems)
        if not found.names:
            why = "; ".join(problems.lines()) or "it lists none"
            raise InputError(f"{annotation_file}: no image can be used: {why}")
        dealt = deal(text, lists["annotations"], slots, {c.id for c in categories}, problems)
    except NotJSONError:
        raise text.fault() from None
    finally:
        if collecting:
            gc.enable()
    return CocoIndex(categories, problems, os.path.realpath(image_folder), found, dealt, text)
