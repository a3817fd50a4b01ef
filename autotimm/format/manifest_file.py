"""``manifest.json``: a manifest (``manifest.py``) as bytes, and back.

Invariants: it is written whole or not at all. Nothing read here is trusted: names are plain file
names, and what the file says is checked against the sha256 in it, so that no change goes unnoticed.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from autotimm.coco.index import Category
from autotimm.files.atomic import read_file, whole_file
from autotimm.format import fields
from autotimm.format.manifest import FORMAT, MANIFEST, READ, VERSION, Manifest, Shard, SplitInfo
from autotimm.format.tar import BLOCK
from autotimm.images.depth import checked_range
from autotimm.structures import UPPER_BITS, InputError

_KNOWN = {
    "format",
    "version",
    "sha256",
    "autotimm",
    "categories",
    "splits",
    "source",
    "pixel_range",
}
_SAMPLE = 2 * BLOCK  # bytes: no sample takes less, its two members have a header each
_AGAIN = "run autotimm-shard again, or copy it again"


def read_manifest(source: bytes | str | Path, where: str = MANIFEST) -> Manifest:
    """Reads and checks a manifest.

    One without ``sha256`` is read too: older versions wrote none, and a user who edits a manifest
    takes it out.

    Args:
        source: its content as bytes, or the path of the file or of the folder that holds it.
        where: what messages call it, if its content is given.

    Raises:
        InputError: it is missing, damaged, or not one that this version reads.
    """
    if not isinstance(source, bytes):
        path = Path(source)
        path = path / MANIFEST if path.is_dir() else path
        where = str(path)
        try:
            source = read_file(path)
        except OSError as error:
            raise InputError(f"{where}: cannot be read: {error.strerror}: {_AGAIN}") from None
    try:
        return _manifest(_checked_content(source, where), where)
    except InputError:
        raise
    except orjson.JSONDecodeError:
        reason = "it is not JSON, or cut off"
    except KeyError as error:
        reason = f"{error} is missing"
    except TypeError:  # what is nested too deep has no digest
        reason = "it is not laid out as one"
    except ValueError as error:
        reason = str(error)
    raise InputError(f"{where}: not a manifest of shards: {reason}: {_AGAIN}")


def _checked_content(source: bytes, where: str) -> dict[str, Any]:
    """The content of a manifest of a version that this one reads, as it was written."""
    content = fields.kind(orjson.loads(source), dict)
    digest = content.pop("sha256", None)
    if content["format"] != FORMAT:
        raise ValueError(f"its format is not '{FORMAT}'")
    if content["version"] not in READ:
        found = fields.brief(content["version"])
        raise InputError(
            f"{where}: not a manifest of shards: its version is {found}, this autotimm reads "
            f"{READ[0]} to {VERSION}: update autotimm or run autotimm-shard again"
        )
    if digest is not None and digest != _digest(content):
        raise InputError(
            f"{where}: was changed or damaged after it was written (its sha256 differs): "
            f'{_AGAIN}; if the change is yours, remove its line "sha256"'
        )
    # One flipped bit in the name of a key must not take the check, or a value, away.
    unknown = content.keys() - _KNOWN
    if unknown:
        raise ValueError(f"{fields.brief(min(unknown))} is nothing that a manifest has")
    return content


def _manifest(content: dict[str, Any], where: str) -> Manifest:
    categories = [
        _category(fields.kind(c, dict))
        for c in fields.kind(content["categories"], list, "categories")
    ]
    if not categories or len({c.id for c in categories}) != len(categories):
        raise ValueError("its categories are empty or share an id")
    named = fields.kind(content["splits"], dict, "splits")
    splits = {
        fields.plain_name(name): _split(fields.kind(split, dict)) for name, split in named.items()
    }
    if not splits:
        raise ValueError("it has no splits")
    names = [s.name for split in splits.values() for s in split.shards]
    if len(set(names)) != len(names):
        raise ValueError("it names a shard twice")
    made_from = content.get("source")
    if made_from is not None:
        fields.kind(made_from, dict, "source")
    pixel_range = content.get("pixel_range", UPPER_BITS)
    if isinstance(pixel_range, list):
        pixel_range = checked_range(f"{where}: its pixel_range", pixel_range)
    elif pixel_range not in (None, UPPER_BITS):
        raise ValueError(f"its pixel_range is {fields.brief(pixel_range)}")
    return Manifest(
        categories,
        splits,
        fields.text(content["autotimm"]),
        made_from,
        version=content["version"],
        pixel_range=pixel_range,
    )


def manifest_bytes(manifest: Manifest) -> bytes:
    """Returns the content of a manifest file."""
    splits = {
        name: {
            "images": split.images,
            "instances": split.instances,
            "crowd": split.crowd,
            # Keys that ordinary data do not need are left out.
            **({"ignored": split.ignored} if split.ignored else {}),
            **({"untrained": split.untrained} if split.untrained else {}),
            "problems": split.problems,
            "shards": [shard_entry(shard) for shard in split.shards],
        }
        for name, split in manifest.splits.items()
    }
    start = {"format": FORMAT, "version": manifest.version}
    content = start | {
        "autotimm": manifest.autotimm,
        "categories": [_category_entry(c) for c in manifest.categories],
        "splits": splits,
    }
    if manifest.source is not None:
        content["source"] = manifest.source
    if manifest.pixel_range != UPPER_BITS:  # what one without it means, as older versions wrote it
        content["pixel_range"] = manifest.pixel_range
    # Near the top, so that taking its line out leaves JSON.
    sealed = start | {"sha256": _digest(content)} | content
    return orjson.dumps(sealed, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes a manifest, whole or not at all."""
    with whole_file(path) as file:
        file.write(manifest_bytes(manifest))


def shard_entry(shard: Shard) -> dict[str, Any]:
    """A shard as the manifest has it."""
    index: dict[str, Any] = {"name": shard.index, "sha256": shard.index_sha256}
    if shard.index_size is not None:
        index["bytes"] = shard.index_size
    return {
        "name": shard.name,
        "samples": shard.samples,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
        "index": index,
    }


def read_shard_entry(entry: Any) -> Shard:
    """Reads what :func:`shard_entry` made, and checks it.

    Raises:
        ValueError, TypeError, KeyError: it is damaged.
    """
    index = fields.kind(fields.kind(entry, dict)["index"], dict, "index")
    names = fields.plain_name(entry["name"]), fields.plain_name(index["name"])
    hashes = fields.sha256(entry["sha256"]), fields.sha256(index["sha256"])
    samples, size = fields.whole(entry["samples"]), fields.whole(entry["bytes"])
    if not 0 < samples * _SAMPLE <= size:
        raise ValueError(f"{names[0]} of {size:,} bytes cannot hold {samples:,} samples")
    index_size = fields.whole(index["bytes"]) if "bytes" in index else None
    return Shard(names[0], samples, size, hashes[0], names[1], hashes[1], index_size)


def _category(entry: dict[str, Any]) -> Category:
    return Category(
        fields.whole(entry["id"], None),
        fields.text(entry["name"]),
        fields.text(entry["supercategory"], empty=True),
        fields.given_id(entry.get("given_id")),
        fields.text(entry.get("frequency", ""), empty=True),
    )


def _digest(content: dict[str, Any]) -> str:
    """The sha256 of a manifest's content as JSON: keys sorted, UTF-8, nothing between values."""
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _split(content: dict[str, Any]) -> SplitInfo:
    shards = [read_shard_entry(entry) for entry in fields.kind(content["shards"], list, "shards")]
    images = fields.whole(content["images"])
    if not images:
        raise ValueError("a split has no images")
    if images != sum(s.samples for s in shards):
        raise ValueError("its shards do not add up to its images")
    counts = fields.kind(content["problems"], dict, "problems")
    problems = {fields.text(kind): fields.whole(count) for kind, count in counts.items()}
    untrained = fields.kind(content.get("untrained", []), list, "untrained")
    return SplitInfo(
        images,
        fields.whole(content["instances"]),
        fields.whole(content["crowd"]),
        problems,
        shards,
        fields.whole(content.get("ignored", 0)),
        [fields.whole(id_, None) for id_ in untrained],
    )


def _category_entry(category: Category) -> dict[str, Any]:
    entry = asdict(category)
    if category.given_id is None:
        del entry["given_id"]
    if not category.frequency:  # of LVIS alone
        del entry["frequency"]
    return entry
