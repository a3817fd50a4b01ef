"""The manifest of a shard folder: what a reader knows before it opens a shard.

    shards/
      manifest.json            categories; per split the shards with their sizes and checksums
      train-000000.tar         a plain WebDataset tar
      train-000000.idx.npy     where each sample lies in it (``index.py``)

Invariants: a file appears under its own name whole or not at all; the manifest is written last, so
a folder that has one is complete. ``manifest_file.py`` reads and writes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from autotimm import __version__
from autotimm.coco.index import Category, names_of
from autotimm.coco.truths import mended, unlearnt
from autotimm.structures import PixelRange

MANIFEST = "manifest.json"
FORMAT = "autotimm-shards"
VERSION = 4
READ = (2, 3, VERSION)
"""Versions that are read."""
WITH_TRUTHS = 3
"""The first version whose records hold what evaluation counts beside what training learns from:
truths without a mask, and boxes and areas without a size as the file has them. Since version 4 an
index says which categories a sample has (``index.PAIR_DTYPE``)."""


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
        index_size: of the index file in bytes; None where an older version wrote it.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    index: str
    index_sha256: str
    index_size: int | None = None


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


def untrained_names(split: SplitInfo, categories: list[Category]) -> list[str]:
    """Returns the names of the categories whose instances in a split are all crowds or ignored."""
    return names_of(split.untrained, categories)


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
