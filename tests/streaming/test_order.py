"""The order of samples, against brute force over many settings."""

from __future__ import annotations

import itertools
import random
import tracemalloc

import numpy as np
import pytest
import webdataset

from autotimm.streaming.order import (
    EpochOrder,
    batch_positions,
    sample_rng,
    steps_per_epoch,
)
from autotimm.structures import World


def brute_force(sizes: list[int], order: EpochOrder) -> list[tuple[int, int]]:
    """All samples in order, looked up one by one from last to first."""
    rows = [order.locate(np.array([p])) for p in reversed(range(order.samples))]
    return [(int(s[0]), int(i[0])) for s, i in reversed(rows)]


def shard_sizes(samples: int, shard: int) -> list[int]:
    full, rest = divmod(samples, shard)
    return [shard] * full + ([rest] if rest else [])


SWEEP = list(
    itertools.product(
        [1, 2, 7, 64, 301],  # samples
        [1, 5, 64],  # samples a shard
        [1, 2, 3, 8, 13],  # ranks
        [1, 4, 6],  # batch size
        [0, 1, 3],  # workers
        [0.0, 0.3, 0.9],  # how far the epoch is
    )
)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.release)])
def test_every_sample_once_on_any_world(every: int, shuffle: bool) -> None:
    swept = SWEEP[::every]  # every fourth one still covers each pair of settings
    assert len(swept) >= 300
    orders: dict[tuple[int, int], tuple[EpochOrder, list[tuple[int, int]]]] = {}
    for samples, shard, ranks, batch, workers, progress in swept:
        if (samples, shard) not in orders:
            sizes = shard_sizes(samples, shard)
            order = EpochOrder(np.array(sizes), seed=5, epoch=2, shuffle=shuffle, window=4)
            truth = brute_force(sizes, order)
            assert sorted(truth) == [(s, i) for s, n in enumerate(sizes) for i in range(n)]
            assert shuffle or truth == sorted(truth)
            orders[samples, shard] = order, truth
        order, truth = orders[samples, shard]
        consumed = int(progress * samples)
        steps = steps_per_epoch(samples, ranks, batch, consumed)

        # The batches of each rank's loader: worker w makes w, w + workers, ...
        per_rank: list[list[list[tuple[int, int]]]] = []
        for rank in range(ranks):
            queues = [list(range(w, steps, max(workers, 1))) for w in range(max(workers, 1))]
            dealt = [s for turn in itertools.zip_longest(*queues) for s in turn if s is not None]
            batches = []
            for step in dealt:
                where = order.locate(batch_positions(step, World(rank, ranks), batch, consumed))
                batches.append(list(zip(*(x.tolist() for x in where), strict=True)))
            per_rank.append(batches)

        assert {len(batches) for batches in per_rank} == {steps}
        seen = [s for group in zip(*per_rank, strict=True) for part in group for s in part]
        left = truth[consumed:]
        assert seen[: len(left)] == left
        wrap = [truth[k % samples] for k in range(len(seen) - len(left))]
        assert seen[len(left) :] == wrap
        assert len(wrap) < ranks * batch


def test_the_cut_of_a_global_batch_changes_nothing() -> None:
    order = EpochOrder(np.array([10, 0, 33, 7]), seed=0, epoch=0, shuffle=True)
    for ranks, batch in [(1, 12), (2, 6), (3, 4), (12, 1)]:
        positions = [
            batch_positions(step, World(rank, ranks), batch)
            for step in range(steps_per_epoch(50, ranks, batch))
            for rank in range(ranks)
        ]
        assert np.concatenate(positions).tolist() == list(range(60))
        assert order.locate(np.concatenate(positions))[0][50:].tolist() == (
            order.locate(np.arange(10))[0].tolist()
        )


def test_seed_and_epoch_decide() -> None:
    sizes = np.full(70, 9)
    everything = np.arange(630)

    def order(seed: int, epoch: int) -> list[int]:
        shard, index = EpochOrder(sizes, seed, epoch, shuffle=True).locate(everything)
        return (shard * 9 + index).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    assert order(1, 0) != order(0, 1)


def test_shards_are_mixed_within_a_window_only() -> None:
    sizes = np.full(70, 9)
    order = EpochOrder(sizes, seed=3, epoch=0, shuffle=True)
    assert order.windows == 3
    for window, span in enumerate([(0, 288), (288, 576), (576, 630)]):
        shard, _ = order.locate(np.arange(*span))
        assert set(shard.tolist()) == set(order.window_shards(window).tolist())
        assert order.window_of(span[0]) == order.window_of(span[1] - 1) == window
        # Neighbours come from the same shard no more often than by chance.
        assert (np.diff(shard) == 0).mean() < 0.25
    assert order.window_shards(3).size == 0
    first, second = (order.locate(np.arange(288) + start)[1] for start in (0, 288))
    assert first.tolist() != second.tolist()  # each window has a permutation of its own


def test_it_mixes_no_worse_than_a_shuffle_buffer_of_10000() -> None:
    """The distance after shuffling of neighbours in a shard, for a data set of COCO's size."""
    sizes = np.array([1000] * 118 + [287])
    order = EpochOrder(sizes, seed=0, epoch=0, shuffle=True)
    shard, index = order.locate(np.arange(order.samples))
    draw = random.Random(0)
    shards = draw.sample(range(119), 119)
    stream = (1000 * s + i for s in shards for i in range(sizes[s]))
    buffered = list(webdataset.filters.shuffle(10_000, initial=10_000, rng=draw)(stream))
    distances = []
    for epoch in (1000 * shard + index, np.array(buffered)):
        apart = np.abs(np.diff(np.argsort(epoch)))
        distances.append(np.delete(apart, np.arange(999, len(apart), 1000)))
    ours, theirs = distances
    assert len(ours) == len(theirs) == 118_287 - 119
    assert ours.mean() >= theirs.mean()
    assert np.median(ours) >= np.median(theirs)
    for near in (10, 100, 1000):
        assert (ours <= near).mean() <= (theirs <= near).mean()


def test_the_order_is_the_same_for_ever() -> None:
    """Resuming relies on it: these numbers must not change with NumPy or with this code."""
    shard, index = EpochOrder(np.array([3, 2, 4]), seed=7, epoch=1, shuffle=True).locate(
        np.arange(9)
    )
    assert shard.tolist() == [2, 1, 1, 0, 2, 0, 0, 2, 2]
    assert index.tolist() == [3, 1, 0, 2, 2, 1, 0, 1, 0]


def test_a_billion_samples_fit() -> None:
    sizes = np.full(1_000_000, 1_000)
    tracemalloc.start()
    order = EpochOrder(sizes, seed=0, epoch=0, shuffle=True)
    order.locate(np.arange(999_999_000, 1_000_000_064))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no sample"):
        EpochOrder(np.array([0, 0]), seed=0, epoch=0, shuffle=True)


def test_augmentation_follows_the_position() -> None:
    draws = {
        key: sample_rng(*key).random()
        for key in itertools.product(range(3), range(3), [0, 1, 2, 2**33])
    }
    assert len(set(draws.values())) == len(draws)
    assert draws[1, 2, 1] == sample_rng(1, 2, 1).random()
