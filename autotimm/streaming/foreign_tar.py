"""One tar that another tool wrote: which of its members make samples, and what they hold.

Invariant: what cannot be used is left out and counted by kind with examples.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from autotimm.coco.checks import RULES, Problems, as_id, is_trained_on
from autotimm.coco.flags import DELETED, is_deleted, settled
from autotimm.coco.truths import trained_categories
from autotimm.format.index import INDEX_DTYPE, category_pairs, checksum, index_bytes
from autotimm.format.manifest import Shard
from autotimm.format.record import entries, facts, with_segmentation
from autotimm.format.tar import members
from autotimm.images.opening import EXTENSIONS
from autotimm.structures import InputError

_IMAGES = {*EXTENSIONS.values(), "jpeg", "jpe", "jfif", "tiff", "pgm"}
_LEFT_OUT = "(sample left out)"
_Member = tuple[str, int, int]  # name, offset and size


@dataclass(slots=True)
class Scan:
    """The content of a tar: its shard, what was left out of it, and what the rest holds."""

    shard: Shard
    categories: set[int] = field(default_factory=set)
    instances: int = 0
    crowd: int = 0
    problems: Problems = field(default_factory=Problems)
    image_ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


def scan_foreign(tar: Path, index: str) -> tuple[Scan, bytes]:
    """Reads a tar once.

    Args:
        tar: its path.
        index: file name of the index that will be kept of it.

    Returns:
        What it holds, and the content of its index file.

    Raises:
        InputError: it cannot be read, is cut off or damaged.
    """
    try:
        with tar.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise InputError(f"{tar}: cannot be read: {error}") from None
    scan = Scan(Shard(tar.name, 0, len(data), "", index, ""))
    rows: list[tuple[int, ...]] = []
    trained: list[set[int]] = []  # the categories of each
    keys: set[str] = set()
    repeated = "key of an earlier sample (both kept)"
    try:
        for key, sample in _samples(data):
            found = _row(data, key, sample, scan)
            if found is None:
                continue
            if key in keys:
                scan.problems.add(repeated, f"{key} in {tar.name}")
            keys.add(key)
            rows.append(found[0])
            trained.append(found[1])
    except InputError as error:
        raise InputError(f"{tar}: {error}: copy or write it again") from None
    index_rows = np.array(rows, INDEX_DTYPE)
    content = index_bytes(index_rows, category_pairs(trained))
    scan.image_ids = index_rows["image_id"]
    hashes = hashlib.sha256(data).hexdigest(), hashlib.sha256(content).hexdigest()
    scan.shard = Shard(tar.name, len(rows), len(data), hashes[0], index, hashes[1])
    return scan, content


def _samples(data: memoryview) -> Iterator[tuple[str, dict[str, list[_Member]]]]:
    """Yields the key of each sample, and its members by their extensions in lower case."""
    named = (
        (match[1], match[2].lower(), member)
        for member in members(data, plain=False)
        # As in webdataset, a key ends at the first dot of the file name; hidden files have no key.
        if (match := re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]*)", member[0], re.DOTALL))
    )
    for key, group in itertools.groupby(named, lambda part: part[0]):
        sample: dict[str, list[_Member]] = {}
        for _, extension, member in group:
            sample.setdefault(extension, []).append(member)
        yield key, sample


def _row(
    data: memoryview, key: str, sample: dict[str, list[_Member]], scan: Scan
) -> tuple[tuple[int, ...], set[int]] | None:
    """The index row of a sample, and its categories; None if it cannot be used."""
    pictures = [m for extension in sample if extension in _IMAGES for m in sample[extension]]
    records = sample.get("json", [])
    example = f"{key} in {scan.shard.name}"
    if len(pictures) != 1 or len(records) != 1:
        lacks = "image" if len(pictures) != 1 else ".json"
        count = "no" if not (pictures if lacks == "image" else records) else "more than one"
        scan.problems.add(f"{count} {lacks} {_LEFT_OUT}", example)
        return None
    (_, image_at, image_bytes), (_, json_at, json_bytes) = pictures[0], records[0]
    image, text = data[image_at : image_at + image_bytes], data[json_at : json_at + json_bytes]
    try:
        raw = orjson.loads(text)
        image_id, width, height = facts(raw)
        if max(image_bytes, json_bytes) >= 2**32:
            raise ValueError("it has 4 GiB or more")
    except orjson.JSONDecodeError:
        scan.problems.add(f"its .json is not JSON {_LEFT_OUT}", example)
        return None
    except ValueError as error:
        scan.problems.add(f"{error} {_LEFT_OUT}", example)
        return None
    usable: list[dict[str, Any]] = []
    for entry in entries(raw):
        category_id = as_id(entry.get("category_id"))
        if is_deleted(entry):
            scan.problems.add(DELETED, example)
        elif category_id is None:
            scan.problems.add("category_id is not a whole number (instance left out)", example)
        elif not (entry.get("segmentation") or entry.get("polygons")):
            scan.problems.add("no segmentation (instance left out)", example)
        else:
            scan.categories.add(category_id)
            scan.instances += 1
            scan.crowd += not is_trained_on(settled(entry), RULES)
            usable.append(with_segmentation(entry, len(usable), category_id))
    categories = trained_categories(usable, height, width)
    at = image_at, image_bytes, json_at, json_bytes
    return (*at, width, height, image_id, checksum(image), checksum(text)), categories
