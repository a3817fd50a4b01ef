"""The lists of a COCO file of instances: where they lie, and which images are used.

Invariants: what cannot be used is left out and counted by kind with examples; ids are integers of
64 bits, each once; every image file lies inside the image folder.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autotimm.coco.categories import CategoryIds
from autotimm.coco.checks import Problems, as_id, as_size, is_text
from autotimm.coco.federated import FEDERATED, federated_lists
from autotimm.coco.flags import DELETED_IMAGE, is_deleted
from autotimm.coco.ids import Key, free_ids, given_id, id_key, refuse_one_number, spelled
from autotimm.coco.jsontext import Array, Text, scan
from autotimm.coco.peek import CONTENTS, peek
from autotimm.images import inspect
from autotimm.images.names import ImageFolder, Match
from autotimm.structures import InputError

LEFT_OUT = -1
_INSIDE = "image entry has annotations in it, where COCO has none (these are not read)"
_LISTS = ("images", "annotations", "categories")
_NAME_KEYS: tuple[str, ...] = ("file_name", "coco_url", "path", "filename", "fileName", "url")
_NAME_KEYS += ("name", "image", "image_path", "img_path", "image_name")
_KEY = re.compile(rb'"(\w+)"\s*:\s*\[$')
_WORDS = {list: "a list", str: "text", type(None): "null", bool: "true or false"}


class ImageList(NamedTuple):
    """The images that can be used.

    Attributes:
        ids: [n] int64.
        names: of the files, in the image folder.
        sizes: [n, 2] int64, width and height.
        given_ids: position -> the dataset's own id, where that is no whole number of 64 bits.
        federated: position -> LVIS' lists, where it has them.
    """

    ids: np.ndarray
    names: list[str]
    sizes: np.ndarray
    given_ids: dict[int, str | float]
    federated: dict[int, dict[str, list[int]]]


def find_lists(text: Text) -> dict[str, Array]:
    """Finds the lists that a COCO file of instances has; all others are only seen to be JSON.

    Raises:
        InputError: it lacks one of them.
        NotJSONError: it is not JSON.
    """
    content, arrays = scan(text)
    if not isinstance(content, dict):
        raise InputError(f"{text.path}: {_not_coco(text, content)}")
    numbers = {}
    for key in _LISTS:
        if key not in content:
            kind = peek(text.path).kind
            of = f"; it holds {CONTENTS[kind]}" if kind in CONTENTS else ""
            raise InputError(f"{text.path}: not a COCO file of instances: it has no '{key}'{of}")
        if not isinstance(content[key], list):
            raise InputError(f"{text.path}: not a COCO file: '{key}' is not a list")
        (numbers[key],) = content[key]
    _refuse_twice(text, arrays, content)
    for number in set(range(len(arrays))) - set(numbers.values()):
        for _ in arrays[number].values(text):
            pass
    return {key: arrays[number] for key, number in numbers.items()}


def _not_coco(text: Text, content: Any) -> str:
    kind = peek(text.path).kind
    found = CONTENTS.get(kind) or _WORDS.get(type(content), "a number")
    return f"not a COCO file: it holds {found}, not an object with images and annotations"


def _refuse_twice(text: Text, arrays: list[Array], content: dict[str, Any]) -> None:
    """Refuses a file that has a list twice: every JSON parser takes the last one alone."""
    named = {value[0] for value in content.values() if type(value) is list and len(value) == 1}
    at = text.begin
    for number, array in enumerate(arrays):
        name = _KEY.search(text.read(at, array.begin - at))
        if number not in named and name is not None and name[1].decode() in _LISTS:
            raise InputError(
                f"{text.path}: has '{name[1].decode()}' twice, and readers of JSON take the last "
                "alone: join the two lists"
            )
        at = array.end


def find_images(
    entries: Iterable[Any],
    folder: Path,
    problems: Problems,
    categories: CategoryIds,
    exact: bool = False,
) -> tuple[ImageList, dict[Key | None, int]]:
    """Returns what can be used, and for each id's key its position in that, negative if left out.

    A key that is a number of another form than Python's, as ``000007``, is there as its text, too.

    Raises:
        InputError: two ids differ, but are one number.
        InputError: the encoding of the locale lacks a character of a file's name.
        InexactIdError: ``exact`` has to be True for this file.
    """
    keys: list[Key] = []
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    given_ids: dict[int, str | float] = {}
    federated: dict[int, dict[str, list[int]]] = {}
    slots: dict[Key | None, int] = {}
    texts: dict[Key, str] = {}  # how ids are written that are numbers in another form
    seen: set[str] = set()
    doubtful: list[tuple[int, str, Match, str]] = []
    listing = ImageFolder(folder)
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            problems.add("image entry is not an object (left out)", f"images[{position}]")
            continue
        key = id_key(entry.get("id"), exact)
        named_by, given = given_name(entry)
        shown = given or f"images[{position}]"
        if key is None:
            problems.add("image id is neither a number nor text (image left out)", shown)
            continue
        if key in slots:
            refuse_one_number(texts.get(key, key), entry["id"], str(folder))
            problems.add("image id occurs twice (later image left out)", f"{shown} (id {key})")
            continue
        slots[key] = LEFT_OUT
        if is_deleted(entry):
            problems.add(DELETED_IMAGE, shown)
            continue
        if entry.get("annotations"):
            problems.add(_INSIDE, shown)
        if isinstance(entry["id"], str) and (text := spelled(entry["id"])) is not None:
            texts[key] = text
        try:
            match = _file_name(named_by, given, listing)
        except UnicodeEncodeError as error:
            raise InputError(
                f"{folder}: no file can be called {error.object!a} where the locale's encoding is "
                f"{sys.getfilesystemencoding()}; set PYTHONUTF8=1, or a locale of UTF-8"
            ) from None
        except ValueError as error:
            problems.add(f"{error} (image left out)", shown)
            continue
        name = match.name
        size = _size(entry, folder, name, problems)
        if not size:
            continue
        file = os.path.normpath(name) if "/" in name else name
        if match.doubt is not None:
            doubtful.append((len(keys), file, match, shown))
        else:
            if match.mended:
                problems.add(match.mended, shown)
            if file in seen:
                problems.add("file_name occurs twice (both images kept)", f"{file} (id {key})")
            seen.add(file)
        slots[key] = len(keys)
        if isinstance(key, str):
            problems.add("image id is not a whole number (numbered anew)", f"{name} (id {key})")
            given_ids[len(keys)] = given_id(entry["id"])
        if FEDERATED[0] in entry:
            lists = federated_lists(entry, categories, problems, name, exact)
            federated[len(keys)] = lists
        keys.append(key)
        names.append(name)
        sizes.append(size)
    refuted = _refuted(doubtful, seen, problems)
    if refuted:
        slots |= {keys[position]: LEFT_OUT for position in refuted}
        kept = [i for i, key in enumerate(keys) if slots[key] != LEFT_OUT]
        given_ids = {new: given_ids[old] for new, old in enumerate(kept) if old in given_ids}
        federated = {new: federated[old] for new, old in enumerate(kept) if old in federated}
        keys, names = [keys[i] for i in kept], [names[i] for i in kept]
        sizes = [sizes[i] for i in kept]
        slots |= {key: i for i, key in enumerate(keys)}
    slots |= {text: slots[key] for key, text in texts.items()}
    new = iter(free_ids({key for key in slots if isinstance(key, int)}, len(given_ids)))
    ids = [next(new) if isinstance(key, str) else key for key in keys]
    in_pixels = np.array(sizes, np.int64).reshape(-1, 2)
    return ImageList(np.array(ids, np.int64), names, in_pixels, given_ids, federated), slots


def named_slots(
    entries: Iterable[Any], slots: dict[Key | None, int], exact: bool
) -> Iterator[tuple[str, int]]:
    """Yields what each image is called in the file, with its position from ``find_images``."""
    seen: set[Key | None] = {None}
    for entry in entries:
        if isinstance(entry, dict) and (name := given_name(entry)[1]):
            key = id_key(entry.get("id"), exact)
            yield name, LEFT_OUT if key in seen else slots[key]
            seen.add(key)


def _refuted(
    doubtful: list[tuple[int, str, Match, str]], seen: set[str], problems: Problems
) -> list[int]:
    """Returns the positions of images whose names may mean a file that another image has, too.

    Args:
        doubtful: position, file, match and shown name of images whose names may mean another file.
        seen: the files of all other images.
        problems: where these are counted, and the mended names of the others.
    """
    claims = Counter(file for _, file, _, _ in doubtful)
    refuted = []
    for position, file, match, shown in doubtful:
        if file in seen or claims[file] > 1:
            refuted.append(position)
            problems.add(f"{match.doubt} (image left out)", shown)
        elif match.mended:
            problems.add(match.mended, shown)
    return refuted


def given_name(entry: dict[str, Any]) -> tuple[str, str]:
    """Returns what an image is called by, and under which key: ``file_name``, or where there is
    none what others write; both are empty where nothing is text."""
    for key in _NAME_KEYS:
        name = entry.get(key)
        if is_text(name) and name.strip():
            return key, name
    return "", ""


def _file_name(key: str, name: str, listing: ImageFolder) -> Match:
    """Returns an image's file in its folder.

    LVIS has no file names but URLs that end in COCO's folder and file; others have a path or URL.

    Args:
        key: under which the file has the name, from ``given_name``.
        name: likewise.
        listing: of the folder.

    Raises:
        ValueError: there is none that can be used; the message is a short reason.
    """
    if key == "file_name":
        return listing.find(name)
    if not key:
        raise ValueError("no file_name")
    # The folder of LVIS' images is part of COCO's name for them.
    ends = ["/".join(name.split("/")[-2:]), name.split("/")[-1]]
    end = next((end for end in ends if listing.problem(end) is None), None)
    mended = f"no file_name ({key}'s taken)"
    if end is not None:
        # Files of one name in two folders are two images, of which one may be missing.
        doubt = f"no file as its {key} has it, and of that name another image's: write file_name"
        return Match(end, mended, None if end == ends[0] else doubt)
    try:
        found = listing.find(name)
    except ValueError:
        reason = f"no file_name, and no file as its {key} has it: write file_name"
        raise ValueError(reason) from None
    return Match(found.name, mended, found.doubt)


def _size(
    entry: dict[str, Any], folder: Path, name: str, problems: Problems
) -> tuple[int, int] | None:
    """Returns width and height: the file's, or else the picture's as viewers show it."""
    if _is_unknown(entry.get("width")) or _is_unknown(entry.get("height")):
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


def _is_unknown(side: Any) -> bool:
    """Returns whether this stands for a side that the exporter did not know: none, 0, -1."""
    number = side if type(side) is int else as_id(side)
    return side in (None, "") or (number is not None and number <= 0)
