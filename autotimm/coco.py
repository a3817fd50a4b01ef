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
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from autotimm import images
from autotimm.checks import Problems, as_id, check_annotations, is_text
from autotimm.jsontext import Array, NotJSONError, Text, parse, scan
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

_LEFT_OUT = -1
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
    _found: _Found = field(repr=False)
    _dealt: _Dealt = field(repr=False)
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
        """Returns the name of image ``i`` in the annotation file."""
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
        return self.records([i], Problems() if problems is None else problems)[0]

    def records(self, positions: Sequence[int], problems: Problems) -> list[Record]:
        """Makes the records of several images: the same, in less time than one by one."""
        positions = list(positions)  # NumPy would take a tuple for something else
        names = [self._found.names[i] for i in positions]
        sizes = self._found.sizes[positions].tolist()
        raws = [self._annotations(i) for i in positions]
        entries = [
            (raw, height, width, name)
            for name, (width, height), of_image in zip(names, sizes, raws, strict=True)
            for raw in of_image
        ]
        checked = iter(check_annotations(entries, problems))
        return [
            {
                "image_id": image_id,
                "file_name": name,
                "width": width,
                "height": height,
                "annotations": [a for a in islice(checked, len(of_image)) if a is not None],
            }
            for image_id, name, (width, height), of_image in zip(
                self._found.ids[positions].tolist(), names, sizes, raws, strict=True
            )
        ]

    def _annotations(self, i: int) -> list[dict[str, Any]]:
        """Reads the annotations of an image, ``id`` (made unique) and ``category_id`` integers."""
        dealt = self._dealt
        first, last = dealt.first[i : i + 2].tolist()
        if first == last:
            return []
        pieces = self._text.read_all(
            dealt.starts[first:last].tolist(), dealt.lengths[first:last].tolist()
        )
        raws: list[dict[str, Any]] = parse(b"[" + b",".join(pieces) + b"]")
        for place, raw in enumerate(raws, first):
            new = dealt.renumbered.get(place)
            raw["id"] = as_id(raw["id"]) if new is None else new
            raw["category_id"] = as_id(raw["category_id"])
        return raws


@dataclass(frozen=True, slots=True)
class _Found:
    """The images that can be used."""

    ids: np.ndarray  # [n] int64
    names: list[str]
    sizes: np.ndarray  # [n, 2] int64, width and height


@dataclass(frozen=True, slots=True)
class _Dealt:
    """The annotations that can be used, image after image: those of i are first[i]:first[i + 1]."""

    first: np.ndarray  # [n + 1] int64
    starts: np.ndarray  # [annotations] int64, offsets in the file
    lengths: np.ndarray  # [annotations] int64, bytes
    renumbered: dict[int, int]  # place -> the id that it gets
    dense: float  # share of the file's text that is no white space


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
    text = Text(Path(annotation_file))
    problems = Problems()
    collecting = gc.isenabled()
    gc.disable()  # millions of small objects, none of them garbage: collecting doubles the time
    try:
        lists = _lists(text)
        categories = _categories(chain.from_iterable(lists["categories"].values(text)), text.path)
        entries = chain.from_iterable(lists["images"].values(text))
        found, slots = _find_images(entries, Path(image_folder), problems)
        if not found.names:
            why = "; ".join(problems.lines()) or "it lists none"
            raise InputError(f"{annotation_file}: no image can be used: {why}")
        dealt = _deal(text, lists["annotations"], slots, {c.id for c in categories}, problems)
    except NotJSONError:
        raise text.fault() from None
    finally:
        if collecting:
            gc.enable()
    return CocoIndex(categories, problems, os.path.realpath(image_folder), found, dealt, text)


def _lists(text: Text) -> dict[str, Array]:
    """Finds the lists that a COCO file of instances has; all others are only seen to be JSON."""
    content, arrays = scan(text)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise InputError(f"{text.path}: not a COCO file: a {kind}, not an object")
    numbers = {}
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise InputError(f"{text.path}: not a COCO file of instances: it has no '{key}'")
        if not isinstance(content[key], list):
            raise InputError(f"{text.path}: not a COCO file: '{key}' is not a list")
        (numbers[key],) = content[key]
    for number in set(range(len(arrays))) - set(numbers.values()):
        for _ in arrays[number].values(text):
            pass
    return {key: arrays[number] for key, number in numbers.items()}


def _categories(entries: Iterable[Any], file: Path) -> list[Category]:
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
    entries: Iterable[Any], folder: Path, problems: Problems
) -> tuple[_Found, dict[int | None, int]]:
    """Returns what can be used, and each id's position in that or _LEFT_OUT."""
    ids: list[int] = []
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    slots: dict[int | None, int] = {}
    seen: set[str] = set()
    listing = images.ImageFolder(folder)
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            problems.add("image entry is not an object (left out)", f"images[{position}]")
            continue
        id_ = as_id(entry.get("id"))
        given = (entry.get("file_name"), entry.get("coco_url"), f"images[{position}]")
        shown = next(name for name in given if isinstance(name, str))
        if id_ is None:
            problems.add("image id is not a whole number (image left out)", shown)
            continue
        if id_ in slots:
            problems.add("image id occurs twice (later image left out)", f"{shown} (id {id_})")
            continue
        slots[id_] = _LEFT_OUT
        try:
            name, mended = _file_name(entry, listing)
        except ValueError as error:
            problems.add(f"{error} (image left out)", shown)
            continue
        size = _size(entry, folder, name, problems)
        if size:
            if mended:
                problems.add(mended, shown)
            if name in seen:
                problems.add("file_name occurs twice (both images kept)", f"{name} (id {id_})")
            seen.add(name)
            slots[id_] = len(ids)
            ids.append(id_)
            names.append(name)
            sizes.append(size)
    found = _Found(np.array(ids, np.int64), names, np.array(sizes, np.int64).reshape(-1, 2))
    return found, slots


def _file_name(entry: dict[str, Any], listing: images.ImageFolder) -> tuple[str, str | None]:
    """Returns the name of an image's file in its folder, and what had to be mended for it.

    LVIS has no file names but URLs that end in COCO's folder and file.

    Raises:
        ValueError: there is none that can be used; the message is a short reason.
    """
    name, url = entry.get("file_name"), entry.get("coco_url")
    if is_text(name):
        return listing.find(name)
    if not is_text(url):
        raise ValueError("no file_name")
    ends = ["/".join(url.split("/")[-2:]), url.split("/")[-1]]
    name = next((end for end in ends if listing.problem(end) is None), None)
    if name is None:
        raise ValueError("no file_name, and no file as its coco_url has it")
    return name, "no file_name (coco_url's taken)"


def _size(
    entry: dict[str, Any], folder: Path, name: str, problems: Problems
) -> tuple[int, int] | None:
    """Returns width and height: the file's, or else the picture's as viewers show it."""
    if entry.get("width") is None or entry.get("height") is None:
        try:
            data = (folder / name).read_bytes()
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
    text: Text,
    listed: Array,
    slots: dict[int | None, int],
    categories: set[int],
    problems: Problems,
) -> _Dealt:
    """Gives each annotation to its image, and a new id to those without one of their own."""
    owners = array("q")  # of each object in the list: the position of its image, or _LEFT_OUT
    used: set[int] = set()
    unnumbered: list[int] = []
    for position, raw in enumerate(chain.from_iterable(listed.values(text))):
        if type(raw) is not dict:
            problems.add("annotation is not an object (left out)", f"annotations[{position}]")
            continue
        id_, image_id, category_id = raw.get("id"), raw.get("image_id"), raw.get("category_id")
        if not (type(id_) is type(image_id) is type(category_id) is int and abs(id_) < 2**63):
            id_, image_id, category_id = as_id(id_), as_id(image_id), as_id(category_id)
        slot = slots.get(image_id)
        lost = None
        if slot is None:
            lost = "an unknown image"
        elif category_id not in categories:
            lost = "an unknown category"
        elif slot == _LEFT_OUT:
            lost = "an image that is left out"
        elif id_ is None or id_ in used:
            kind = "id missing or not a whole number" if id_ is None else "id occurs twice"
            problems.add(f"annotation {kind} (numbered anew)", _shown(id_, position))
            unnumbered.append(len(owners))
        else:
            used.add(id_)
        if lost:
            problems.add(f"annotation of {lost} (left out)", _shown(id_, position))
        owners.append(_LEFT_OUT if slot is None or lost else slot)
    sample = text.read(listed.begin, min(2**16, listed.end - listed.begin))
    owner = np.frombuffer(owners, np.int64)
    order = np.argsort(owner, kind="stable")
    order = order[np.count_nonzero(owner == _LEFT_OUT) :]
    place = np.empty(len(owner), np.int64)
    place[order] = np.arange(len(order))
    free = max(used, default=0) + 1
    count = sum(slot != _LEFT_OUT for slot in slots.values())
    first = np.searchsorted(owner[order], np.arange(count + 1))
    return _Dealt(
        first=first,
        starts=listed.starts[order],
        lengths=listed.lengths[order],
        renumbered={int(place[i]): new for new, i in enumerate(unnumbered, free)},
        dense=len(b"".join(sample.split())) / max(len(sample), 1),
    )


def _shown(id_: int | None, position: int) -> str:
    return f"annotations[{position}]" if id_ is None else f"annotation {id_}"
