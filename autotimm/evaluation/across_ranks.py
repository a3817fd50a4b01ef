"""What the ranks tell each other, so that metrics are those of the images of all of them.

Each rank compares its own images by hotcoco and sends what it found to the first one, which joins
it. For metrics of torchmetrics, which computes from nothing less, the images travel themselves.

Invariant: all ranks make the same calls in the same order, also one that has no image and one whose
images could not be compared, so that no rank waits for another that does not come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch.distributed as dist

from autotimm.evaluation.packing import pack, unpack
from autotimm.structures import Detections, Target

if TYPE_CHECKING:
    from hotcoco import StreamingEval

    from autotimm.evaluation.coco_input import IouType


class Key(NamedTuple):
    """What an image is known by.

    Attributes:
        id: images are taken in the order of their ids.
        given: whether it is the image's own id, by which two ranks know that they have the same
            one; else it counts the images of one rank.
    """

    id: int
    given: bool


class Failure(NamedTuple):
    """Why a rank could not compare its images."""

    reason: str


Compared = tuple["IouType", int]
"""Boxes or masks, and how many detections of a class count in an image."""


class Part(NamedTuple):
    """What one rank has for the first one.

    Attributes:
        found: in its images, by what was compared.
        numbers: of the images that follow.
        images: what was found in them and what is there; none where nobody needs them.
    """

    found: dict[Compared, StreamingEval | Failure]
    numbers: Sequence[int]
    images: Sequence[tuple[Detections, Target]]


def place() -> tuple[int, int]:
    """The rank of this process and how many there are; 0 of 1 where there are no others."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def numbered(keys: Sequence[Sequence[Key]]) -> list[dict[int, int]]:
    """Divides the images among the ranks, each once, and numbers them in the order of their ids.

    Args:
        keys: of the images that each rank has.

    Returns:
        Of each rank, the number of each image that it is to compare, by its place among its own.
        The first rank that has an image compares it.
    """
    holders: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, own in enumerate(keys):
        for at, (id_, given) in enumerate(own):
            holders.setdefault((id_, -1 if given else rank), (rank, at))
    shares: list[dict[int, int]] = [{} for _ in keys]
    for number, (_, (rank, at)) in enumerate(sorted(holders.items()), 1):
        shares[rank][at] = number
    return shares


def to_all(value: Any) -> list[Any]:
    """The values of all ranks, by rank; every rank calls it."""
    _, ranks = place()
    if ranks == 1:
        return [value]
    values: list[Any] = [None] * ranks
    dist.all_gather_object(values, value)
    return values


def to_first(own: Part) -> list[Part]:
    """The parts of all ranks, by rank, on the first one, and none on the others; all call it."""
    rank, ranks = place()
    if ranks == 1:
        return [own]
    packed: Any = [pack(one) for one in zip(*own.images, strict=True)] or [{}, {}]
    parts: list[Any] | None = [None] * ranks if rank == 0 else None
    dist.gather_object(own._replace(images=packed), parts)
    return [
        part._replace(images=list(zip(*map(unpack, part.images), strict=True)))
        for part in parts or ()
    ]


def from_first(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the first rank; every rank calls it."""
    if place()[1] == 1:
        return dict(values)
    sent: list[Any] = [values]
    dist.broadcast_object_list(sent)
    return sent[0]
