"""COCO folders: finding the splits, reading the annotations, one checked record an image.

Invariants: what cannot be used is left out and counted by kind with examples, never lost silently;
every image file lies inside the image folder; ids are integers; masks are compressed RLEs of the
image's size. A record from here equals the one that a shard holds.

Boxes here are COCO's own x, y, w, h, and category ids the dataset's.
"""

from __future__ import annotations

import gc
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from autotimm import images
from autotimm.checks import Problems, as_id, check_annotation, is_text
from autotimm.structures import InputError, Record

__all__ = [
    "Category",
    "CocoIndex",
    "Problems",
    "Split",
    "find_splits",
    "label_of",
    "load",
    "split_names",
]

_MAX_SIDE = 2**20  # pixels
_MAX_PIXELS = 2**31 - 1  # run lengths are C ints


@dataclass(frozen=True, slots=True)
class Category:
    """A class of objects, under the dataset's own id."""

    id: int
    name: str
    supercategory: str = ""


@dataclass(frozen=True, slots=True)
class Split:
    """One part of a COCO folder, such as ``train``; its image folder may be missing."""

    name: str
    annotation_file: Path
    image_folder: Path


@dataclass
class CocoIndex:
    """The images of one split that can be used, in the file's order, and their annotations as the
    file has them.

    Attributes:
        categories: sorted by id.
        problems: what ``load`` found odd.
        image_folder: resolved; every image lies inside it.
    """

    categories: list[Category]
    problems: Problems
    image_folder: str
    _images: list[tuple[int, str, int, int]] = field(repr=False)  # id, file name, width, height
    _annotations: list[list[dict[str, Any]]] = field(repr=False)

    def __len__(self) -> int:
        return len(self._images)

    def image_path(self, i: int) -> Path:
        """Returns where image ``i`` lies; ``load`` saw that this is inside the image folder."""
        return Path(self.image_file(i))

    def image_file(self, i: int) -> str:
        """Returns the same as text, for loops in which making a Path takes longer than the rest."""
        return f"{self.image_folder}/{self._images[i][1]}"

    def file_name(self, i: int) -> str:
        """Returns the name of image ``i`` in the annotation file."""
        return self._images[i][1]

    def size(self, i: int) -> tuple[int, int]:
        """Returns width and height of image ``i`` in pixels, as its record has them."""
        return self._images[i][2:]

    def image_id(self, i: int) -> int:
        """Returns the id of image ``i``."""
        return self._images[i][0]

    def annotation_bytes(self, i: int) -> int:
        """Returns about how many bytes the record of image ``i`` takes as JSON."""
        numbers = 0
        for raw in self._annotations[i]:
            segmentation = raw.get("segmentation")
            counts = segmentation.get("counts") if isinstance(segmentation, dict) else segmentation
            for part in counts if isinstance(counts, list) else [counts]:
                numbers += len(part) if isinstance(part, (list, str)) else 1
        return 100 + 250 * len(self._annotations[i]) + 10 * numbers

    def record(self, i: int, problems: Problems | None = None) -> Record:
        """Makes the checked record of image ``i``: what a shard's ``<key>.json`` holds.

        Args:
            i: 0 to ``len(self) - 1``.
            problems: where annotations that are odd are counted; by default nowhere, as who reads a
                dataset epoch after epoch does not want to count them again.
        """
        image_id, file_name, width, height = self._images[i]
        problems = Problems() if problems is None else problems
        checked = (
            check_annotation(raw, height, width, file_name, problems)
            for raw in self._annotations[i]
        )
        return {
            "image_id": image_id,
            "file_name": file_name,
            "width": width,
            "height": height,
            "annotations": [annotation for annotation in checked if annotation is not None],
        }


def find_splits(root: Path) -> dict[str, Split]:
    """Finds the splits of a folder in COCO's layout, by name.

    ``annotations/instances_train2017.json`` makes the split ``train`` (trailing digits go, unless
    two splits would then share a name); its images are looked for in ``train2017/``,
    ``images/train2017/``, ``train/``, ``images/train/`` and ``images/``.

    Raises:
        InputError: there is no such folder, or no annotation file in it.
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


def load(annotation_file: Path, image_folder: Path) -> CocoIndex:
    """Reads a COCO annotation file and sees that its images are there.

    An image is opened only where the file lacks its size.

    Raises:
        InputError: nothing can go on: a file or folder is missing or unreadable, it is not COCO, it
            has no categories or some that share an id, or none of its images can be used.
    """
    if not Path(image_folder).is_dir():
        raise InputError(f"{image_folder}: no such folder, but {annotation_file} needs its images")
    collecting = gc.isenabled()
    gc.disable()  # millions of small objects, none of them garbage: collecting doubles the time
    try:
        content = _read(Path(annotation_file))
        categories = _categories(content["categories"], annotation_file)
        problems = Problems()
        found, slots = _find_images(content["images"], Path(image_folder), problems)
        if not found:
            why = "; ".join(problems.lines()) or "it lists none"
            raise InputError(f"{annotation_file}: no image can be used: {why}")
        annotations: list[list[dict[str, Any]]] = [[] for _ in found]
        _deal(content["annotations"], slots, {c.id for c in categories}, annotations, problems)
    finally:
        if collecting:
            gc.enable()
    return CocoIndex(categories, problems, os.path.realpath(image_folder), found, annotations)


def _read(file: Path) -> dict[str, Any]:
    try:
        data = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        content = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            content = json.loads(data)  # slower, but takes the NaN that Python itself writes
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}: not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: not a COCO file: a {type(content).__name__}, not an object")
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise InputError(f"{file}: not a COCO file of instances: it has no '{key}'")
        if not isinstance(content[key], list):
            raise InputError(f"{file}: not a COCO file: '{key}' is not a list")
    return content


def _categories(entries: list[Any], file: Path) -> list[Category]:
    categories: dict[int, Category] = {}
    for position, entry in enumerate(entries):
        where = f"{file}: categories[{position}]"
        if not isinstance(entry, dict):
            raise InputError(f"{where} is not an object")
        id_, name = as_id(entry.get("id")), entry.get("name")
        if id_ is None:
            raise InputError(f"{where} has no whole number as 'id'")
        if not is_text(name):
            raise InputError(f"{where} (id {id_}) has no 'name'")
        if id_ in categories:
            raise InputError(f"{where} '{name}' has id {id_}, which '{categories[id_].name}' has")
        supercategory = entry.get("supercategory")
        categories[id_] = Category(id_, name, supercategory if is_text(supercategory) else "")
    if not categories:
        raise InputError(f"{file}: 'categories' is empty: nothing to learn")
    return [categories[id_] for id_ in sorted(categories)]


def _find_images(
    entries: list[Any], folder: Path, problems: Problems
) -> tuple[list[tuple[int, str, int, int]], dict[int, int | None]]:
    """Returns what can be used (id, file name, width, height) and each id's position, or None."""
    found: list[tuple[int, str, int, int]] = []
    slots: dict[int, int | None] = {}
    listing = images.ImageFolder(folder)
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            problems.add("image entry is not an object (left out)", f"images[{position}]")
            continue
        name, id_ = entry.get("file_name"), as_id(entry.get("id"))
        shown = name if isinstance(name, str) else f"images[{position}]"
        if id_ is None:
            problems.add("image id is not a whole number (image left out)", shown)
            continue
        if id_ in slots:
            problems.add("image id occurs twice (later image left out)", f"{shown} (id {id_})")
            continue
        slots[id_] = None
        if not is_text(name):
            problems.add("no file_name (image left out)", shown)
            continue
        problem = listing.problem(name)
        if problem:
            problems.add(f"{problem} (image left out)", shown)
            continue
        size = _size(entry, folder / name, shown, problems)
        if size:
            slots[id_] = len(found)
            found.append((id_, name, *size))
    return found, slots


def _size(
    entry: dict[str, Any], path: Path, name: str, problems: Problems
) -> tuple[int, int] | None:
    """Returns width and height: the file's, or else the picture's as viewers show it."""
    if entry.get("width") is None or entry.get("height") is None:
        try:
            data = path.read_bytes()
            images.inspect(data)
            width, height = images.shown_size(data)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            problems.add(f"{reason} (image left out)", name)
            return None
        problems.add("width or height missing (picture's taken)", name)
        return width, height
    width, height = as_id(entry["width"]) or 0, as_id(entry["height"]) or 0
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE and width * height <= _MAX_PIXELS):
        problems.add("width or height is not a sane whole number (image left out)", name)
        return None
    return width, height


def _deal(
    entries: list[Any],
    slots: dict[int, int | None],
    categories: set[int],
    annotations: list[list[dict[str, Any]]],
    problems: Problems,
) -> None:
    """Gives each annotation to its image, ``id`` (made unique) and ``category_id`` as integers."""
    used: set[int] = set()
    unnumbered = []
    for position, raw in enumerate(entries):
        if not isinstance(raw, dict):
            problems.add("annotation is not an object (left out)", f"annotations[{position}]")
            continue
        id_ = as_id(raw.get("id"))
        shown = f"annotations[{position}]" if id_ is None else f"annotation {id_}"
        image_id, category_id = as_id(raw.get("image_id")), as_id(raw.get("category_id"))
        if image_id is None or image_id not in slots:
            problems.add("annotation of an unknown image (left out)", shown)
            continue
        if category_id not in categories:
            problems.add("annotation of an unknown category (left out)", shown)
            continue
        slot = slots[image_id]
        if slot is None:
            problems.add("annotation of an image that is left out (left out)", shown)
            continue
        raw["category_id"] = category_id
        if id_ is None or id_ in used:
            kind = "id missing or not a whole number" if id_ is None else "id occurs twice"
            problems.add(f"annotation {kind} (numbered anew)", shown)
            unnumbered.append(raw)
        else:
            raw["id"] = id_
            used.add(id_)
        annotations[slot].append(raw)
    free = max(used, default=0) + 1
    for new, raw in enumerate(unnumbered, free):
        raw["id"] = new
