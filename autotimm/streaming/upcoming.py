"""Which samples a worker reads next, for sources that fetch them ahead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from autotimm.streaming.buckets import BucketPlan
from autotimm.streaming.order import EpochOrder, Plan, partner

Place = tuple[int, int]
"""Shard, and index within the shard."""


def places(order: EpochOrder, positions: NDArray[np.int64] | int) -> Iterator[Place]:
    """The place of each position."""
    shard, index = order.locate(np.atleast_1d(positions))
    return zip(shard.tolist(), index.tolist(), strict=True)


def upcoming(
    order: EpochOrder,
    plan: Plan | BucketPlan,
    steps: Iterable[int],
    seed: int,
    epoch: int,
    paired: float,
) -> Iterator[list[Place]]:
    """Yields what each step reads: its samples, and those that ``partner`` draws for them.

    Args:
        order: of the epoch; one of its own, since an order is fast in one window at a time.
        plan: of the rank.
        steps: of the worker.
        seed, epoch, paired: as for ``partner``.
    """
    for step in steps:
        positions = plan.positions(step)
        drawn = [partner(seed, epoch, p, paired) for p in positions.tolist()] if paired else []
        others = [p for p in drawn if p is not None]
        yield list(places(order, np.concatenate([positions, np.array(others, np.int64)])))
