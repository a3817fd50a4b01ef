"""Verifies one shard: its tar and index against the manifest, and every sample in it.

Invariants: nothing in the shard is trusted, and a fault does not stop the check. Memory is that of
one sample and a few bytes an instance.
"""

from __future__ import annotations

import hashlib
import mmap
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from autotimm.coco import masks
from autotimm.format.index import (
    build_index,
    checksum,
    most_bytes,
    read_index,
    read_pairs,
    trained_categories,
)
from autotimm.format.manifest import MANIFEST, Shard
from autotimm.format.record import checked_record
from autotimm.format.tar import BLOCK
from autotimm.images.decode import decode_image
from autotimm.images.turns import in_turn
from autotimm.sharding.processes import Progress
from autotimm.structures import InputError, PixelRange, Record

MOST_FAULTS = 20
"""The largest number of faults listed for a shard, and of repeated ids for a split."""
_PLACES = ("image_offset", "image_bytes", "json_offset", "json_bytes")


@dataclass(slots=True)
class Found:
    """What one shard holds: counts and ids of its readable records, and its faults."""

    images: int = 0
    instances: int = 0
    crowd: int = 0
    ignored: int = 0
    bytes: int = 0
    image_ids: array[int] = field(default_factory=lambda: array("q"))
    annotation_ids: array[int] = field(default_factory=lambda: array("q"))
    faults: list[str] = field(default_factory=list)
    more: int = 0  # faults that are not listed

    def fault(self, text: str) -> None:
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(text)
        else:
            self.more += 1


@dataclass(frozen=True, slots=True)
class VerifyShard:
    """Checks the shard of a number; runs in the workers."""

    folder: Path
    shards: Sequence[Shard]
    categories: frozenset[int]
    pixel_range: PixelRange

    def __call__(self, number: int, progress: Progress) -> Found:
        shard, found = self.shards[number], Found()
        tar = _tar(self.folder / shard.name, shard, found)
        index, pairs = _index(self.folder / shard.index, shard, found)
        rows = index
        if tar is not None:
            try:
                built = build_index(tar)
            except InputError as error:
                found.fault(str(error))
            else:
                if len(built) != shard.samples:
                    found.fault(f"has {len(built):,} samples, {MANIFEST} says {shard.samples:,}")
                if index is None:
                    rows = built
                elif not np.array_equal(built[[*_PLACES]], index[[*_PLACES]]):
                    found.fault(f"{shard.index} says that its samples lie elsewhere")
            listed = None if pairs is None else _by_sample(pairs)
            for sample, row in enumerate(() if rows is None else rows):
                has = None if listed is None else listed.get(sample, set())
                _check_sample(tar, sample, row, has, self.categories, self.pixel_range, found)
                progress(1)
        return found


def _tar(path: Path, shard: Shard, found: Found) -> memoryview | None:
    """Reads a tar to its end, and maps it; None if it cannot be read."""
    try:
        if not path.is_file():
            found.fault(f"{MANIFEST} names it, but there is no such file")
            return None
        with path.open("rb") as file:
            # Read before mapping, because a disk error in mapped memory kills the process.
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            found.bytes = file.tell()
            if found.bytes != shard.bytes:
                found.fault(f"has {found.bytes:,} bytes, {MANIFEST} says {shard.bytes:,}")
            elif digest != shard.sha256:
                found.fault(f"its bytes are not those that {MANIFEST} says (sha256 differs)")
            if not found.bytes:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # ValueError: another process has emptied the file
        found.fault(f"cannot be read: {getattr(error, 'strerror', None) or error}")
        return None


def _index(path: Path, shard: Shard, found: Found) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Reads the index of a shard, rows and pairs; None if it is damaged or has none."""
    try:
        if not path.is_file():
            found.fault(f"its index {shard.index} is not there")
            return None, None
        with path.open("rb") as file:
            content = file.read(most_bytes(shard))
        if hashlib.sha256(content).hexdigest() != shard.index_sha256:
            found.fault(f"the bytes of {shard.index} are not those that {MANIFEST} says")
            return None, None
        return read_index(content, shard), read_pairs(content, shard)
    except OSError as error:
        found.fault(f"{shard.index} cannot be read: {error.strerror}")
    except InputError as error:
        found.fault(str(error))
    return None, None


def _check_sample(
    tar: memoryview,
    number: int,
    row: np.void,
    listed: set[int] | None,  # the sample's categories as the index has them, if it has any
    categories: frozenset[int],
    pixel_range: PixelRange,
    found: Found,
) -> None:
    image_at, image_bytes, json_at, json_bytes = (int(row[name]) for name in _PLACES)
    where = f"sample {number}"
    if max(image_at + image_bytes, json_at + json_bytes) > len(tar):
        found.fault(f"{where}: not in the file, which is cut off")
        return
    where += f" '{_key(tar, json_at)}'"
    image, text = tar[image_at : image_at + image_bytes], tar[json_at : json_at + json_bytes]
    intact = checksum(image) == row["image_xxh3"]
    if not intact:
        found.fault(f"{where}: the image's bytes have changed since it was written")
    if checksum(text) != row["json_xxh3"]:
        found.fault(f"{where}: the record's bytes have changed since it was written")
        return
    try:
        record = checked_record(text, where)
    except InputError as error:
        found.fault(str(error))
        return
    width, height = record["width"], record["height"]
    if (width, height, record["image_id"]) != tuple(row[["width", "height", "image_id"]].tolist()):
        found.fault(f"{where}: the index has the size or image id of another")
    if listed is not None and listed != trained_categories(record["annotations"]):
        found.fault(f"{where}: the index has the categories of another")
    try:
        _count(record, found)
    except OverflowError:
        found.fault(f"{where}: an id takes more than 64 bits")
    for fault in _mask_faults(record, categories):
        found.fault(f"{where}: {fault}")
    if intact:
        try:
            with in_turn(width * height):
                decode_image(image, width, height, pixel_range)
        except InputError as error:
            found.fault(f"{where}: {error}")
        except MemoryError:
            found.fault(f"{where}: the image is too large for this machine")


def _by_sample(pairs: np.ndarray) -> dict[int, set[int]]:
    """The category ids of each sample that has any."""
    found: dict[int, set[int]] = {}
    for sample, category_id in pairs.tolist():
        found.setdefault(sample, set()).add(category_id)
    return found


def _count(record: Record, found: Found) -> None:
    """Adds a sample to what was found; OverflowError for an id of more than 64 bits."""
    found.images += 1
    found.instances += len(record["annotations"])
    for annotation in record["annotations"]:
        found.crowd += bool(annotation["iscrowd"])
        found.ignored += bool(annotation.get("ignore") and not annotation["iscrowd"])
    found.image_ids.append(record["image_id"])
    every = (*record["annotations"], *record.get("unmasked", ()))
    found.annotation_ids.extend(one["id"] for one in every)


def _mask_faults(record: Record, categories: frozenset[int]) -> Iterator[str]:
    height, width = record["height"], record["width"]
    for one in (*record["annotations"], *record.get("unmasked", ())):
        if one["category_id"] not in categories:
            yield f"annotation {one['id']}: {MANIFEST} has no category {one['category_id']}"
    for annotation in record["annotations"]:
        which = f"annotation {annotation['id']}"
        try:
            rle = masks.to_rle(annotation["segmentation"], height, width)
        except ValueError as error:
            yield f"{which}: {error}"
            continue
        polygons = annotation.get("polygons")
        # Readers may use either, so the two have to agree.
        if polygons and masks.from_polygons(polygons, height, width) != rle:
            yield f"{which}: its polygons are not its mask"


def _key(tar: memoryview, offset: int) -> str:
    """The WebDataset key of the record whose data begin at an offset."""
    name = (
        bytes(tar[max(offset - BLOCK, 0) : offset][:100]).rstrip(b"\0").decode("utf-8", "replace")
    )
    return name.removesuffix(".json")
