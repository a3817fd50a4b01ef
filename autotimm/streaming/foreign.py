"""Shards that another tool wrote: tars without a manifest, which this module indexes once.

A sample is a run of members with the same key: ``<key>.jpg`` (or another image) and ``<key>.json``
with ``image_id``, ``width``, ``height`` and ``annotations`` in COCO's fields. The tars of a split
share a name before their number: ``train-000000.tar`` belongs to ``train``.

Invariants: this module reads a tar once, and keeps its index and a summary in the cache folder,
under a name that changes with the tar; one process makes them while the others wait; it refuses a
tar that is cut off or damaged; it leaves out and counts samples that cannot be used; no image id
occurs twice in a split, because evaluation identifies images by it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson

from autotimm.coco.checks import Problems
from autotimm.coco.index import Category
from autotimm.coco.layouts import ROBOFLOW
from autotimm.files.atomic import whole_file
from autotimm.format.index import read_index
from autotimm.format.manifest import MANIFEST, Manifest, Shard, SplitInfo
from autotimm.streaming.cache import Cache
from autotimm.streaming.foreign_tar import Scan, scan_foreign
from autotimm.structures import InputError

FOLDER = "foreign"
"""The subfolder of the cache folder for the indices."""

_VERSION = 4  # of the files in that folder
_OF_SHARD = ("samples", "bytes", "sha256", "index", "index_sha256")  # kept in them


def are_tars(folder: Path) -> bool:
    """Returns whether a folder holds tars, and is neither a shard folder nor a COCO folder.

    Raises:
        InputError: the folder holds shards of autotimm-shard without their manifest, for example
            after an interrupted copy. Read as another tool's tars, they would lose the names of
            their classes, and a missing shard would go unnoticed.
    """
    manifest = folder / MANIFEST
    if manifest.is_file():
        return False
    patterns = ("annotations/instances_*.json", f"*/{ROBOFLOW}")
    coco = any(next(folder.glob(pattern), None) is not None for pattern in patterns)
    if os.path.lexists(manifest) or (not coco and next(folder.glob("*.idx.npy"), None) is not None):
        raise InputError(
            f"{folder}: shards of autotimm-shard whose {MANIFEST} is missing (or not a file): copy "
            "it too, or run autotimm-shard again"
        )
    return not coco and next(folder.glob("*.tar"), None) is not None


def split_tars(folder: Path) -> dict[str, list[Path]]:
    """The tars of a folder by split, sorted by their numbers; empty if there are none.

    Raises:
        InputError: the name of a tar is only a number.
    """
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(folder.glob("*.tar")):
        match = re.fullmatch(r"(.*?)[-_.]?([0-9]{0,18})", path.stem)
        if not match or not match[1]:
            raise InputError(
                f"{path}: its name has no split: put the split before the number, as in "
                f"train-{path.name}"
            )
        found.setdefault(match[1], []).append((int(match[2] or 0), path))
    return {name: [path for _, path in sorted(tars)] for name, tars in sorted(found.items())}


def manifest_of_tars(folder: Path, cache: Cache) -> tuple[Manifest, dict[str, Problems]]:
    """Makes a manifest for a folder of tars, and lists for each split what was left out.

    The manifest's indices are in ``FOLDER`` of the cache. Its categories are the ids that occur in
    any split, named by their numbers.

    Raises:
        InputError: a tar is damaged, a split has no usable sample, or an image id occurs twice in
            a split.
    """
    tars = split_tars(folder)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        scans = {name: list(pool.map(lambda t: _scanned(t, cache), tars[name])) for name in tars}
    splits, problems = {}, {}
    for name, parts in scans.items():
        problems[name] = Problems()
        for part in parts:
            problems[name].update(part.problems)
        shards = [part.shard for part in parts if part.shard.samples]
        if not shards:
            why = "; ".join(problems[name].lines()) or "they are empty"
            raise InputError(f"{folder}: split {name!r}: no sample in its tars can be used: {why}")
        _refuse_repeats(f"{folder}: split {name!r}", parts)
        splits[name] = SplitInfo(
            images=sum(shard.samples for shard in shards),
            instances=sum(part.instances for part in parts),
            crowd=sum(part.crowd for part in parts),
            problems=problems[name].counts,
            shards=shards,
        )
    ids = sorted(set().union(*(part.categories for parts in scans.values() for part in parts)))
    return Manifest([Category(id_, str(id_)) for id_ in ids], splits), problems


def remark(split: SplitInfo, categories: list[Category]) -> str:
    """A line about a split's size, in which a user may notice that a tar is missing."""
    return (
        f"tars of another tool, without a {MANIFEST}: {len(split.shards):,} tars with "
        f"{split.images:,} samples and {len(categories):,} categories, which are named by their ids"
    )


def _refuse_repeats(where: str, parts: list[Scan]) -> None:
    ids, counts = np.unique(np.concatenate([p.image_ids for p in parts]), return_counts=True)
    repeated = ids[counts > 1]
    if len(repeated):
        holders = (p.shard.name for p in parts for _ in range((p.image_ids == repeated[0]).sum()))
        raise InputError(
            f"{where}: {len(repeated):,} image_id are of several samples each, such as "
            f"{repeated[0]} ({', '.join(itertools.islice(holders, 3))}), and evaluation goes by "
            "it: give every image its own"
        )


def _scanned(tar: Path, cache: Cache) -> Scan:
    """The content of a tar: from the cache, or by a scan of the tar that is then cached."""
    try:
        status = tar.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{tar}: not a regular file: move it away")
        key = f"{_VERSION}\0{tar.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    except OSError as error:
        raise InputError(f"{tar}: cannot be read: {error.strerror}") from None
    name = hashlib.sha256(os.fsencode(key)).hexdigest()
    path = cache.folder / FOLDER / f"{name}.json"
    with cache.lock(name):
        scan = _load(path, tar.name)
        if scan is None:
            scan, rows = scan_foreign(tar, f"{name}.npy")
            try:
                path.parent.mkdir(exist_ok=True)
                with whole_file(path.with_suffix(".npy")) as file:
                    file.write(rows)
                with whole_file(path) as file:
                    file.write(_dump(scan))
            except OSError as error:
                raise InputError(
                    f"{path.parent}: the index of {tar} cannot be kept there: {error.strerror}: "
                    "set cache_dir to another folder"
                ) from None
    return scan


def _dump(scan: Scan) -> bytes:
    """The summary of a scan: its sha256, and on the next line the rest as JSON."""
    content = orjson.dumps(
        {
            **{name: getattr(scan.shard, name) for name in _OF_SHARD},
            "categories": sorted(scan.categories),
            "instances": scan.instances,
            "crowd": scan.crowd,
            "problems": scan.problems.counts,
            "examples": scan.problems.examples,
        }
    )
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def _load(path: Path, name: str) -> Scan | None:
    """A scan that was kept; None if it is missing or damaged, so that the tar is scanned again."""
    try:
        digest, _, text = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if hashlib.sha256(text).hexdigest().encode() != digest:
        return None
    content = orjson.loads(text)
    shard = Shard(name, *(content[key] for key in _OF_SHARD))
    try:
        index = path.with_name(shard.index).read_bytes()
    except OSError:
        return None
    if hashlib.sha256(index).hexdigest() != shard.index_sha256:
        return None
    problems = Problems()
    problems.counts, problems.examples = content["problems"], content["examples"]
    scan = Scan(shard, set(content["categories"]), content["instances"], content["crowd"], problems)
    if shard.samples:
        scan.image_ids = read_index(index, shard)["image_id"]
    return scan
