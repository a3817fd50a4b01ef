"""Images that two splits share: a model is then measured on what it has learnt by heart.

Invariant: files are compared by the checksums that writing them takes anyway; none is read again.
"""

from __future__ import annotations

import numpy as np

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
        sums, positions = images[split]
        for earlier in names[:number]:
            there, places = images[earlier]
            # Not np.isin and np.unique, which import numpy.ma: as dear as a hundred annotations.
            order = there.argsort(kind="stable")
            known = there[order]
            first = known.searchsorted(sums)  # of several images of the same bytes
            first[first == len(known)] = 0
            matches = known[first] == sums if len(known) else np.zeros(len(sums), np.bool_)
            for at in np.flatnonzero(matches).tolist():
                place = places[order[first[at]]]
                name = job.indices[split].file_name(positions[at])
                other = job.indices[earlier].file_name(place)
                found[split].add(shared_kind(earlier), shown_pair(name, other))
    return found


def _images(job: Job, done: dict[int, Written], split: str) -> tuple[np.ndarray, np.ndarray]:
    """The checksums of a split's images that were written, and their positions in its index."""
    sums: list[int] = []
    positions: list[int] = []
    for k in sorted(done):
        name, plan = job.plans[k]
        # An entry of an older version has none.
        if name == split and len(done[k].checksums) == len(plan.samples):
            sums += done[k].checksums
            positions += [position for position, _ in plan.samples]
    written = np.array(sums, np.uint64)
    return written[written != 0], np.array(positions, np.int64)[written != 0]
