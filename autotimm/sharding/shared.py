"""Images that two splits share: a model is then measured on what it has learnt by heart.

Invariant: files are compared by the checksums that writing them takes anyway; none is read again.
"""

from __future__ import annotations

from autotimm.coco.checks import Problems
from autotimm.coco.shared import shared_kind, shown_pair
from autotimm.sharding.job import Job
from autotimm.sharding.outcome import Written


def shared_images(job: Job, done: dict[int, Written]) -> dict[str, Problems]:
    """Counts the images of each split whose file's bytes an earlier split has, too.

    Args:
        job: what was written.
        done: by the number of the shard.

    Returns:
        By split, a kind for each of the splits before it.
    """
    images = {split: _images(job, done, split) for split in job.splits}
    found = {split: Problems() for split in job.splits}
    names = list(job.splits)
    for number, split in enumerate(names):
        for earlier in names[:number]:
            places: dict[int, int] = {}  # the first of several images of the same bytes
            for checksum, place in images[earlier]:
                places.setdefault(checksum, place)
            for checksum, position in images[split]:
                if checksum in places:
                    name = job.indices[split].file_name(position)
                    other = job.indices[earlier].file_name(places[checksum])
                    found[split].add(shared_kind(earlier), shown_pair(name, other))
    return found


def _images(job: Job, done: dict[int, Written], split: str) -> list[tuple[int, int]]:
    """The checksums of a split's images that were written, with their positions in its index."""
    images: list[tuple[int, int]] = []
    for k in sorted(done):
        name, plan = job.plans[k]
        # An entry of an older version has none.
        if name == split and len(done[k].checksums) == len(plan.samples):
            positions = (position for position, _ in plan.samples)
            images += zip(done[k].checksums, positions, strict=True)
    return [(checksum, position) for checksum, position in images if checksum]
