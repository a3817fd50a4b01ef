"""The manifest of a shard folder: what a reader knows before it opens a shard.

    shards/
      manifest.json            categories; per split the shards with their sizes and checksums
      train-000000.tar         a plain WebDataset tar
      train-000000.idx.npy     where each sample lies in it (``index.py``)

Invariants: a file appears under its own name whole or not at all; the manifest is written last, so
a folder that has one is complete. Nothing read here is trusted: names are plain file names, and
what a manifest says is checked against the sha256 in it, so that no change goes unnoticed.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import orjson

from autotimm import __version__
from autotimm.coco.index import Category, names_of
from autotimm.coco.truths import mended, unlearnt
from autotimm.files.atomic import read_file, whole_file
from autotimm.images.depth import checked_range
from autotimm.structures import UPPER_BITS, InputError, PixelRange

_T = TypeVar("_T")

MANIFEST = "manifest.json"
FORMAT = "autotimm-shards"
VERSION = 3
READ = (2, VERSION)
"""Versions that are read."""
WITH_TRUTHS = 3
"""The first version whose records hold what evaluation counts beside what training learns from:
truths without a mask, and boxes and areas without a size as the file has them."""
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


BLOCK = 512  # bytes: the tar format's unit
_SAMPLE = 2 * BLOCK  # bytes: no sample takes less, its two members have a header each

_AGAIN = "run autotimm-shard again, or copy it again"


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar and its index.

    Attributes:
        name: file name of the tar, in the manifest's folder.
        samples: how many images it holds.
        bytes: its size.
        sha256: of the whole file, hexadecimal.
        index: file name of its index.
        index_sha256: of the index file, hexadecimal.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    index: str
    index_sha256: str


@dataclass(frozen=True, slots=True)
class SplitInfo:
    """One split: its shards in order, what they hold, what was odd in the source (by kind).

    ``instances`` counts those of a crowd too, ``crowd`` them alone; ``ignored`` those that say
    ``ignore: 1`` and are no crowd. ``untrained`` has the ids of the categories of which the source
    has such instances only.
    """

    images: int
    instances: int
    crowd: int
    problems: dict[str, int]
    shards: list[Shard]
    ignored: int = 0
    untrained: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a shard folder holds.

    ``autotimm`` is the version that wrote it; ``source`` what it was made from: options, and
    checksums of the source, of which a reader needs nothing (None where an older version wrote it).
    ``version`` is that of the format, one of ``READ``.
    ``pixel_range`` is what becomes black and white in images of more than 8 bits a channel that do
    not declare their bits; None where there are none.
    """

    categories: list[Category]
    splits: dict[str, SplitInfo]
    autotimm: str = field(default=__version__)
    source: dict[str, Any] | None = None
    version: int = VERSION
    pixel_range: PixelRange = None


def read_manifest(source: bytes | str | Path, where: str = MANIFEST) -> Manifest:
    """Reads and checks a manifest.

    One without ``sha256`` is read too: versions wrote none, and who edits a manifest takes it out.

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
        content = _kind(orjson.loads(source), dict)
        digest = content.pop("sha256", None)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is not '{FORMAT}'")
        if content["version"] not in READ:
            raise InputError(
                f"{where}: not a manifest of shards: its version is {_brief(content['version'])}, "
                f"this autotimm reads {READ[0]} to {VERSION}: update autotimm or run "
                "autotimm-shard again"
            )
        if digest is not None and digest != _digest(content):
            raise InputError(
                f"{where}: was changed or damaged after it was written (its sha256 differs): "
                f'{_AGAIN}; if the change is yours, remove its line "sha256"'
            )
        # One flipped bit in the name of a key must not take the check, or a value, away.
        unknown = content.keys() - _KNOWN
        if unknown:
            raise ValueError(f"{_brief(min(unknown))} is nothing that a manifest has")
        categories = [
            _category(_kind(c, dict)) for c in _kind(content["categories"], list, "categories")
        ]
        if not categories or len({c.id for c in categories}) != len(categories):
            raise ValueError("its categories are empty or share an id")
        named = _kind(content["splits"], dict, "splits")
        splits = {plain_name(name): _split(_kind(split, dict)) for name, split in named.items()}
        if not splits:
            raise ValueError("it has no splits")
        names = [s.name for split in splits.values() for s in split.shards]
        if len(set(names)) != len(names):
            raise ValueError("it names a shard twice")
        made_from = content.get("source")
        if made_from is not None:
            _kind(made_from, dict, "source")
        pixel_range = content.get("pixel_range", UPPER_BITS)
        if isinstance(pixel_range, list):
            pixel_range = checked_range("its pixel_range", pixel_range)
        elif pixel_range not in (None, UPPER_BITS):
            raise ValueError(f"its pixel_range is {_brief(pixel_range)}")
        return Manifest(
            categories,
            splits,
            _text(content["autotimm"]),
            made_from,
            version=content["version"],
            pixel_range=pixel_range,
        )
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


def manifest_bytes(manifest: Manifest) -> bytes:
    """Returns the content of a manifest file."""
    splits = {
        name: {
            "images": split.images,
            "instances": split.instances,
            "crowd": split.crowd,
            # What ordinary data have not is not there.
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


def _category_entry(category: Category) -> dict[str, Any]:
    entry = asdict(category)
    if category.given_id is None:
        del entry["given_id"]
    if not category.frequency:  # of LVIS alone
        del entry["frequency"]
    return entry


def _given_id(value: Any) -> str | float | None:
    if value is not None and not isinstance(value, str) and type(value) is not float:
        raise ValueError(f"{_brief(value)} is no given_id")
    return value


def untrained_names(split: SplitInfo, categories: list[Category]) -> list[str]:
    """Returns the names of the categories of which a split has crowds or the like only."""
    return names_of(split.untrained, categories)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes a manifest, whole or not at all."""
    with whole_file(path) as file:
        file.write(manifest_bytes(manifest))


def lacking(manifest: Manifest, split: str) -> str:
    """What evaluation would count and the shards of a split do not hold: those of an older version
    have only what training learns from."""
    if manifest.version >= WITH_TRUTHS:
        return ""
    kinds = manifest.splits[split].problems
    counts = {
        "instances without a mask": unlearnt(kinds),
        "boxes or areas without a size": mended(kinds),
    }
    lost = [f"{count:,} {what}" for what, count in counts.items() if count]
    if not lost:
        return ""
    return (
        f"these shards are of an older version and lack {' and '.join(lost)} that pycocotools "
        "counts: run autotimm-shard again for its AP"
    )


def shard_entry(shard: Shard) -> dict[str, Any]:
    """A shard as the manifest has it."""
    return {
        "name": shard.name,
        "samples": shard.samples,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
        "index": {"name": shard.index, "sha256": shard.index_sha256},
    }


def read_shard_entry(entry: Any) -> Shard:
    """Reads the same back, and checks it.

    Raises:
        ValueError, TypeError, KeyError: it is damaged.
    """
    index = _kind(_kind(entry, dict)["index"], dict, "index")
    names = plain_name(entry["name"]), plain_name(index["name"])
    hashes = _hash(entry["sha256"]), _hash(index["sha256"])
    samples, size = _whole(entry["samples"]), _whole(entry["bytes"])
    if not 0 < samples * _SAMPLE <= size:
        raise ValueError(f"{names[0]} of {size:,} bytes cannot hold {samples:,} samples")
    return Shard(names[0], samples, size, hashes[0], names[1], hashes[1])


def _category(entry: dict[str, Any]) -> Category:
    return Category(
        _whole(entry["id"], None),
        _text(entry["name"]),
        _text(entry["supercategory"], empty=True),
        _given_id(entry.get("given_id")),
        _text(entry.get("frequency", ""), empty=True),
    )


def _digest(content: dict[str, Any]) -> str:
    """The sha256 of a manifest's content as JSON: keys sorted, UTF-8, nothing between values."""
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _split(content: dict[str, Any]) -> SplitInfo:
    shards = [read_shard_entry(entry) for entry in _kind(content["shards"], list, "shards")]
    images = _whole(content["images"])
    if not images:
        raise ValueError("a split has no images")
    if images != sum(s.samples for s in shards):
        raise ValueError("its shards do not add up to its images")
    counts = _kind(content["problems"], dict, "problems")
    problems = {_text(kind): _whole(count) for kind, count in counts.items()}
    untrained = _kind(content.get("untrained", []), list, "untrained")
    return SplitInfo(
        images,
        _whole(content["instances"]),
        _whole(content["crowd"]),
        problems,
        shards,
        _whole(content.get("ignored", 0)),
        [_whole(id_, None) for id_ in untrained],
    )


def _kind(value: Any, kind: type[_T], name: str | None = None) -> _T:
    if not isinstance(value, kind):
        what = "an object" if kind is dict else "a list"
        raise ValueError(f"its {name} is not {what}" if name else f"{_brief(value)} is not {what}")
    return value


def _brief(value: Any) -> str:
    """A value as JSON has it, for a message: not pages of it."""
    text = "".join(c if c.isprintable() else "?" for c in orjson.dumps(value).decode())
    return text if len(text) <= 80 else f"{text[:80]}..."


def _whole(value: Any, least: int | None = 0) -> int:
    if type(value) is not int or (least is not None and value < least):
        raise ValueError(f"{_brief(value)} is not a count or an id")
    return value


def _text(value: Any, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty):
        raise ValueError(f"{_brief(value)} is not a name")
    return value


def plain_name(value: Any) -> str:
    """Checks that this is a plain file name: one from elsewhere must not lead out of its folder.

    Raises:
        ValueError: it is not; the message is a short reason.
    """
    if not re.fullmatch(r"[^./\\\0-\x1f][^/\\\0-\x1f]*", _text(value)):
        raise ValueError(f"{_brief(value)} is not a plain file name")
    return value


def _hash(value: Any) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", _text(value)):
        raise ValueError(f"{_brief(value)} is not a sha256")
    return value
