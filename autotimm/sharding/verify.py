"""Verifies a shard folder: compares every byte, record, mask and pixel with the manifest.

Invariants: nothing in the folder is trusted, and a fault does not stop the check; every fault is
one line that names the file, and the sample and annotation if there are any. Memory is that of one
sample and a few bytes an instance, because files are read in pieces or mapped.

Only the manifest has the names of splits and categories, the ids of categories without instances,
the source, and the problems found in it. The check cannot notice a change of these if the manifest
has no checksum of its own, which is so if an older version wrote it or a user edited it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autotimm.format.manifest import MANIFEST, Manifest, Shard
from autotimm.format.manifest_file import read_manifest
from autotimm.sharding.destinations.journal import WORK
from autotimm.sharding.processes import worker_pool
from autotimm.sharding.verify_shard import MOST_FAULTS, Found, VerifyShard
from autotimm.structures import InputError


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a verification.

    Attributes:
        shards: the number of shards in the manifest.
        images: the number of readable records.
        instances: of these records, crowds included.
        crowd: how many of the instances are crowds.
        bytes: of the tars.
        faults: one printable line each; empty if the folder is sound.
    """

    shards: int
    images: int
    instances: int
    crowd: int
    bytes: int
    faults: list[str]


def verify(
    folder: Path,
    workers: int = 1,
    progress: Callable[[int, int], object] = lambda *_: None,
) -> Report:
    """Verifies a local shard folder.

    It checks the manifest; each shard's size, sha256 and tar structure, and its index against the
    tar; each sample's checksums, record, masks (and polygons, if any, against the mask) and fully
    decoded pixels; that ids are unique in their split and categories known; the counts; and that
    the folder has no other tar or index.

    Args:
        folder: holds the manifest.
        workers: the number of processes; each checks one shard at a time.
        progress: called with the number of images done and that of all images.

    Raises:
        InputError: the folder does not exist, or is not a shard folder.
        OSError: the folder cannot be listed, or a worker died.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if not (folder / MANIFEST).is_file():
        if (folder / WORK).is_dir():
            raise InputError(
                f"{folder}: holds an unfinished run: run autotimm-shard again as it was"
            )
        raise InputError(f"{folder}: has no {MANIFEST}, so it is not a folder of shards")
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        return Report(0, 0, 0, 0, 0, [_printable(f"{error}; nothing else was checked")])
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    categories = frozenset(category.id for category in manifest.categories)
    done, total = 0, sum(shard.samples for shard in shards)

    def advance(images: int) -> None:
        nonlocal done
        done += images
        progress(done, total)

    found: dict[str, Found] = {}
    with worker_pool(
        VerifyShard(folder, shards, categories, manifest.pixel_range), min(workers, len(shards))
    ) as run_tasks:
        for number, part in run_tasks(range(len(shards)), advance):
            found[shards[number].name] = part

    faults = [*_split_faults(manifest, found), *_unnamed_files(folder, shards)]
    return Report(
        len(shards),
        sum(f.images for f in found.values()),
        sum(f.instances for f in found.values()),
        sum(f.crowd for f in found.values()),
        sum(f.bytes for f in found.values()),
        [_printable(fault) for fault in faults],
    )


def _split_faults(manifest: Manifest, found: dict[str, Found]) -> list[str]:
    """The faults of each split: of its shards, of its counts, and ids that it has twice."""
    faults = []
    for name, split in manifest.splits.items():
        parts = [found[shard.name] for shard in split.shards]
        for shard, part in zip(split.shards, parts, strict=True):
            faults += [f"{shard.name}: {fault}" for fault in part.faults]
            if part.more:
                faults.append(f"{shard.name}: and {part.more:,} more")
        if all(p.images == s.samples for p, s in zip(parts, split.shards, strict=True)):
            for what in ("instances", "crowd", "ignored"):
                claimed, counted = getattr(split, what), sum(getattr(p, what) for p in parts)
                if claimed != counted:
                    faults.append(
                        f"{MANIFEST}: split '{name}' has {counted:,} {what}, not {claimed:,}"
                    )
        faults += _twice(f"split '{name}': image", [p.image_ids for p in parts])
        faults += _twice(f"split '{name}': annotation", [p.annotation_ids for p in parts])
    return faults


def _unnamed_files(folder: Path, shards: Sequence[Shard]) -> list[str]:
    """The tars and indices that the manifest does not name."""
    named = {name for shard in shards for name in (shard.name, shard.index)}
    return [
        f"{name}: {MANIFEST} does not name it"
        for name in sorted(path.name for path in folder.iterdir())
        if name.endswith((".tar", ".idx.npy")) and name[0] != "." and name not in named
    ]


def _twice(what: str, parts: Sequence[array[int]]) -> list[str]:
    ids, counts = np.unique(
        np.concatenate([np.asarray(part) for part in parts]), return_counts=True
    )
    again = ids[counts > 1].tolist()
    faults = [f"{what} id {id_} occurs more than once" for id_ in again[:MOST_FAULTS]]
    more = len(again) - MOST_FAULTS
    return faults + [f"{what} ids: and {more:,} more"] * (more > 0)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
