"""The three lists of a COCO file of instances: what of each can be used, and where in the file.

Invariants: what cannot be used is left out and counted by kind with examples; ids are integers, an
image's and an annotation's unique; every image file lies inside the image folder. The lists are
read in pieces (``jsontext.py``), and what is kept of an annotation is its place in the file.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from autotimm.coco.checks import Problems, as_id, as_size, is_text
from autotimm.coco.jsontext import Array, Text, scan
from autotimm.images import inspect
from autotimm.structures import InputError

_LEFT_OUT = -1


@dataclass(frozen=True, slots=True)
class Category:
    """A class of objects, under the dataset's own id."""

    id: int
    name: str
    supercategory: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """The images that can be used."""

    ids: np.ndarray  # [n] int64
    names: list[str]
    sizes: np.ndarray  # [n, 2] int64, width and height


@dataclass(frozen=True, slots=True)
class Dealt:
    """The annotations that can be used, image after image: those of i are first[i]:first[i + 1]."""

    first: np.ndarray  # [n + 1] int64
    starts: np.ndarray  # [annotations] int64, offsets in the file
    lengths: np.ndarray  # [annotations] int64, bytes
    renumbered: dict[int, int]  # place -> the id that it gets
    dense: float  # share of the file's text that is no white space


def find_lists(text: Text) -> dict[str, Array]:
    """Finds the lists that a COCO file of instances has; all others are only seen to be JSON.

    Raises:
        InputError: it lacks one of them.
        NotJSONError: it is not JSON.
    """
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


def read_categories(entries: Iterable[Any], file: Path) -> list[Category]:
    """Returns the categories by id.

    Raises:
        InputError: there is none, or one cannot be told from the others.
    """
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


def find_images(
    entries: Iterable[Any], folder: Path, problems: Problems
) -> tuple[Found, dict[int | None, int]]:
    """Returns what can be used, and for each id its position in that, negative if left out.

    Raises:
        InputError: the encoding of the locale lacks a character of a file's name.
    """
    ids: list[int] = []
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    slots: dict[int | None, int] = {}
    seen: set[str] = set()
    listing = inspect.ImageFolder(folder)
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
        except UnicodeEncodeError as error:
            raise InputError(
                f"{folder}: no file can be called {error.object!a} where the locale's encoding is "
                f"{sys.getfilesystemencoding()}; set PYTHONUTF8=1, or a locale of UTF-8"
            ) from None
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
    found = Found(np.array(ids, np.int64), names, np.array(sizes, np.int64).reshape(-1, 2))
    return found, slots


def _file_name(entry: dict[str, Any], listing: inspect.ImageFolder) -> tuple[str, str | None]:
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
            inspect.inspect(data)
            width, height = inspect.shown_size(data)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            problems.add(f"{reason} (image left out)", name)
            return None
        problems.add("width or height missing (picture's taken)", name)
        return width, height
    size = as_size(entry["width"], entry["height"])
    if size is None:
        problems.add("width or height is not a sane whole number (image left out)", name)
    return size


def deal(
    text: Text,
    listed: Array,
    slots: dict[int | None, int],
    categories: set[int],
    problems: Problems,
) -> Dealt:
    """Gives each annotation to its image, and a new id to those without one of their own.

    Args:
        text: the file.
        listed: its annotations.
        slots: from ``find_images``.
        categories: their ids.
        problems: where what is odd is counted.

    Raises:
        NotJSONError: the annotations are not JSON.
    """
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
            problems.add(f"annotation {kind} (numbered anew)", _shown(id_, image_id, position))
            unnumbered.append(len(owners))
        else:
            used.add(id_)
        if lost:
            problems.add(f"annotation of {lost} (left out)", _shown(id_, image_id, position))
        owners.append(_LEFT_OUT if slot is None or lost else slot)
    sample = text.read(listed.begin, min(2**16, listed.end - listed.begin))
    owner = np.frombuffer(owners, np.int64)
    order = np.argsort(owner, kind="stable")
    order = order[np.count_nonzero(owner == _LEFT_OUT) :]
    place = np.empty(len(owner), np.int64)
    place[order] = np.arange(len(order))
    free = _free_ids(used, len(unnumbered))
    count = sum(slot != _LEFT_OUT for slot in slots.values())
    first = np.searchsorted(owner[order], np.arange(count + 1))
    return Dealt(
        first=first,
        starts=listed.starts[order],
        lengths=listed.lengths[order],
        renumbered={int(place[i]): new for i, new in zip(unnumbered, free, strict=True)},
        dense=len(b"".join(sample.split())) / max(len(sample), 1),
    )


def _free_ids(used: set[int], count: int) -> list[int]:
    """Returns ids that are not used, of 64 bits: those above the largest, or else the first."""
    above = max(used, default=0) + 1
    if above + count <= 2**63:
        return list(range(above, above + count))
    return list(islice((id_ for id_ in range(1, 2**63) if id_ not in used), count))


def _shown(id_: int | None, image_id: Any, position: int) -> str:
    annotation = f"annotations[{position}]" if id_ is None else f"annotation {id_}"
    return annotation if as_id(image_id) is None else f"{annotation} of image {image_id}"
