"""The journal of an unfinished run: its job, and an entry for each finished shard.

    .autotimm-shard/             in the destination, until the manifest is in place
      job.json                   source and options (``Job.identity``)
      train-000000.json          the shard of that name is finished: its counts, the problems found,
                                 and a fingerprint of the image files that it was made from

Invariants: a run writes an entry after its shard, so a shard with an entry is complete; a damaged
entry counts as missing, because writing a shard again is always safe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import orjson

from autotimm.coco.checks import Problems
from autotimm.format.manifest_file import read_shard_entry, shard_entry
from autotimm.images.depths import Depths
from autotimm.sharding.outcome import Written

WORK = ".autotimm-shard"
JOB = "job.json"


def entry_name(shard: str) -> str:
    """The file name of a shard's entry."""
    return shard.removesuffix(".tar") + ".json"


def entry_bytes(written: Written, stamp: str) -> bytes:
    """Makes the entry of a planned shard; without a shard in it if no image was usable."""
    content = {
        "sources": stamp,
        "images": written.images,
        "instances": written.instances,
        "crowd": written.crowd,
        "ignored": written.ignored,
        "bytes": written.bytes,
        "shards": [shard_entry(shard) for shard in written.shards],
        "problems": written.problems.counts,
        "examples": written.problems.examples,
        "depths": asdict(written.depths),  # infinite extremes, of no image, become null
        "checksums": written.checksums,
    }
    return orjson.dumps(content)


def read_entry(content: bytes, name: str) -> tuple[Written, str] | None:
    """Reads a shard's entry: what was written, and the fingerprint; None if it is damaged."""
    try:
        entry = orjson.loads(content)
        images, instances, crowd, ignored, size = counts = [
            entry.get(key, 0) if key == "ignored" else entry[key]  # versions without it wrote none
            for key in ("images", "instances", "crowd", "ignored", "bytes")
        ]
        shards = [read_shard_entry(shard) for shard in entry["shards"]]
        problems = Problems()
        for kind, count in entry["problems"].items():
            problems.counts[kind] = int(count)
            problems.examples[kind] = [str(example) for example in entry["examples"][kind]]
        sound = all(type(count) is int and count >= 0 for count in counts)
        if not sound or len(shards) > 1 or any(shard.name != name for shard in shards):
            return None
        found = {key: value for key, value in entry["depths"].items() if value is not None}
        written = Written(
            shards, images, instances, crowd, ignored, size, problems, depths=Depths(**found)
        )
        written.checksums = [int(one) for one in entry.get("checksums", ())]
        return written, str(entry["sources"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def read_job_entry(content: bytes | None) -> dict[str, Any] | None:
    """Reads ``job.json``; returns None for None, and an empty dict if it is damaged."""
    if content is None:
        return None
    try:
        job = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return job if isinstance(job, dict) else {}


def is_ours(name: str, splits: Iterable[str]) -> bool:
    """Whether a name is that of a shard of these splits, its index, or a temporary file of them."""
    names = "|".join(map(re.escape, splits))
    return bool(re.fullmatch(rf"\.?({names})-[0-9]{{6,}}\.(tar|idx\.npy)(\..*\.tmp)?", name))
