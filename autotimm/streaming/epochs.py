"""The epochs of a split: how many samples each has, their order, and the plan of a rank's batches.

This is where the order (``order.py``), repeated images (``repeats.py``) and buckets
(``buckets.py``) come together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from autotimm.streaming.buckets import BucketPlan, Canvases, Segment, assign
from autotimm.streaming.order import EpochOrder, Plan
from autotimm.streaming.repeats import Repeats
from autotimm.structures import World


class Epochs:
    """Orders and plans of a split's epochs.

    Args:
        shard_sizes: [shards] images of each shard.
        image_sizes: returns [images, 2] width and height; called if there are canvases.
        seed: of the run.
        shuffle: False for the natural order, the same in every epoch.
        canvases: heights and widths, the largest first, to group images by; empty without.
        repeats: how often each image comes; None for once.

    Attributes:
        samples: of every epoch.
        history: an epoch, and its earlier segments.
    """

    def __init__(
        self,
        shard_sizes: NDArray[np.int64],
        image_sizes: Callable[[], NDArray[np.int64]],
        *,
        seed: int,
        shuffle: bool,
        canvases: Canvases = (),
        repeats: Repeats | None = None,
    ) -> None:
        self._sizes, self._image_sizes = shard_sizes, image_sizes
        self._seed, self._shuffle = seed, shuffle
        self._canvases, self._repeats = canvases, repeats
        self._images = int(shard_sizes.sum())
        self.samples = self._images if repeats is None else repeats.samples
        self.history: tuple[int, list[Segment]] = (0, [])
        self._buckets: dict[Canvases, NDArray[np.uint8]] = {}
        if canvases:
            self._assign(canvases)

    def resume(self, epoch: int, history: list[Segment]) -> None:
        """Sets the earlier segments of an epoch that continues."""
        self.history = (epoch, history)
        for part in history:
            self._assign(part.canvases)
        if history:
            self._assign(self._canvases)

    def order(self, epoch: int) -> EpochOrder:
        """The order of an epoch."""
        counts = None
        if self._repeats is not None:
            counts = self._repeats.counts(self._seed, epoch if self._shuffle else 0)
        return EpochOrder(self._sizes, self._seed, epoch, self._shuffle, repeats=counts)

    def plan(
        self, order: EpochOrder, epoch: int, world: World, batch_size: int, consumed: int
    ) -> Plan | BucketPlan:
        """A rank's batches of the rest of an epoch; arguments as of ``Plan``."""
        history = self.history[1] if epoch == self.history[0] else []
        given = (order, world, batch_size, consumed)
        if not self._canvases and not history:
            return Plan(*given)
        return BucketPlan(*given, self._canvases, self._buckets, history)

    def _assign(self, canvases: Canvases) -> None:
        if canvases not in self._buckets:
            self._buckets[canvases] = (
                assign(self._image_sizes(), canvases)
                if canvases
                else np.zeros(self._images, np.uint8)
            )
