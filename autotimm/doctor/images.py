"""Checks some images of a split, as autotimm-shard checks all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from autotimm.coco.checks import Problems
from autotimm.images.decode import DataError
from autotimm.images.depths import Depths
from autotimm.images.usable import usable
from autotimm.streaming.pixel_range import spread
from autotimm.streaming.store import Source


@dataclass(slots=True)
class ImageSample:
    """What some images of a split are.

    Attributes:
        images: how many.
        lost: how many of them cannot be used.
        problems: by the kinds that autotimm-shard counts.
        depths: those of more than 8 bits a channel.
    """

    images: int = 0
    lost: int = 0
    problems: Problems = field(default_factory=Problems)
    depths: Depths = field(default_factory=Depths)


def look(source: Source, most: int, whole: bool) -> ImageSample:
    """Checks images of a split, evenly spaced.

    Args:
        source: of the split.
        most: how many at most.
        whole: whether the source is damaged if an image cannot be read, as shards are; the images
            of a folder are counted as left out.

    Raises:
        DataError: an image of a ``whole`` source cannot be read.
    """
    found = ImageSample()
    for place in spread(source.shard_sizes, most):
        found.images += 1
        try:
            data, record = source.read(*place)
        except DataError as error:
            if whole:
                raise
            path, reading, reason = str(error).rpartition("cannot be read: ")
            _count_lost(found, reading + reason, path.rpartition("/")[2].removesuffix(": "))
            continue
        name, size = record["file_name"], (record["width"], record["height"])
        odd = partial(found.problems.add, example=name)
        try:
            usable(data, size, name, found.depths, odd)
        except ValueError as error:
            _count_lost(found, str(error), name)
    return found


def _count_lost(found: ImageSample, reason: str, name: str) -> None:
    found.lost += 1
    found.problems.add(f"{reason} (image left out)", name)
