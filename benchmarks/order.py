"""What planning an epoch costs, and how well it shuffles: no data needed.

    python benchmarks/order.py

Shuffle quality is told by neighbours, samples that follow each other in a shard and may be frames
of one video or come from one source: how far apart the epoch has them, and which share of them
within 100 samples. Beside our order stand shuffle buffers over shuffled shards, webdataset's way.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Iterable

import numpy as np
from webdataset.filters import shuffle as webdataset_shuffle

from autotimm.streaming.buckets import BucketPlan, Segment, assign
from autotimm.streaming.order import EpochOrder, Plan
from autotimm.structures import World

COCO, SHARD = 118_287, 1_000


def neighbours(order: Iterable[int], shard_sizes: Iterable[int]) -> np.ndarray:
    """Distances in an epoch of samples that follow each other in a shard.

    Args:
        order: [samples] the epoch: which sample, counted shard after shard, comes when.
        shard_sizes: [shards] samples of each.
    """
    place = np.argsort(np.fromiter(order, np.int64))
    apart = np.abs(np.diff(place))
    within = np.ones(len(apart), bool)
    within[np.cumsum(np.fromiter(shard_sizes, np.int64))[:-1] - 1] = False
    return apart[within]


def our_order(shard_sizes: np.ndarray, seed: int = 0) -> np.ndarray:
    """[samples] an epoch of ours."""
    order = EpochOrder(shard_sizes, seed, epoch=0, shuffle=True)
    shard, index = order.locate(np.arange(order.samples))
    return (np.cumsum(shard_sizes) - shard_sizes)[shard] + index


def buffered_order(shard_sizes: np.ndarray, size: int, seed: int = 0) -> np.ndarray:
    """[samples] an epoch out of webdataset's shuffle buffer, filled from shuffled shards."""
    draw = random.Random(seed)  # noqa: S311
    firsts = np.cumsum(shard_sizes) - shard_sizes
    shards = list(range(len(shard_sizes)))
    draw.shuffle(shards)
    stream = (int(firsts[s]) + i for s in shards for i in range(int(shard_sizes[s])))
    return np.array(list(webdataset_shuffle(size, initial=size, rng=draw)(stream)))


def _shuffling() -> None:
    sizes = np.array([SHARD] * (COCO // SHARD) + [COCO % SHARD])
    print(f"neighbours of {COCO} samples, shards of {SHARD}       mean  median  within 100")
    rows = {"ours, windows of 32 shards": our_order(sizes)}
    for size in (1_000, 10_000):
        rows[f"webdataset, buffer of {size}"] = buffered_order(sizes, size)
    for name, order in rows.items():
        d = neighbours(order, sizes)
        near = (d <= 100).mean()
        print(f"{name:<46} {d.mean():8.0f} {np.median(d):7.0f} {near:10.2%}")


def _cost(name: str, shards: int, canvases: tuple[tuple[int, int], ...], changed: bool) -> None:
    sizes = np.full(shards, SHARD)
    samples = int(sizes.sum())
    known, history = {}, []
    if canvases:
        draw = np.random.default_rng(0)
        known = {canvases: assign(draw.integers(400, 641, (samples, 2)), canvases)}
        history = [Segment(512, 512 * 100, canvases)] if changed else []
    world, consumed = World(700, 1024), 512 * 100 if changed else 0

    def first() -> None:
        order = EpochOrder(sizes, 0, 0, shuffle=True)
        plan = (
            BucketPlan(order, world, 1, consumed, canvases, known, history)
            if canvases
            else Plan(order, world, 1, consumed)
        )
        order.locate(plan.positions(0))

    times = []
    for _ in range(3):
        start = time.process_time()
        first()
        times.append(time.process_time() - start)
    tracemalloc.start()
    first()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{name:<46} {sorted(times)[1] * 1000:8.0f} ms {peak / 1e6:8.1f} MB")


def main() -> None:
    """Prints both tables."""
    _shuffling()
    print(f"\nrank 700 of 1024 plans, and finds its first batch  {'CPU':>5} {'memory':>10}")
    three = ((640, 640), (512, 640), (640, 512))
    _cost("10^9 samples", 1_000_000, (), changed=False)
    _cost("10^6 samples, resumed", 1_000, (), changed=True)
    _cost("10^6 samples, aspect_buckets", 1_000, three, changed=False)
    _cost("10^6 samples, aspect_buckets, other batch size", 1_000, three, changed=True)


if __name__ == "__main__":
    main()
