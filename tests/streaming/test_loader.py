"""Epochs swept over world sizes: every sample once, resume anywhere, skipped samples counted."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

from autotimm.coco.checks import Problems
from autotimm.images.decode import DataError
from autotimm.streaming.dataset import SampleStream
from autotimm.streaming.loader import StreamLoader
from autotimm.streaming.order import WINDOW, EpochOrder
from autotimm.streaming.repeats import Repeats
from autotimm.structures import InputError, World

SQUARE = ((64, 64), (32, 64), (64, 32))
SQUARER = ((64, 64), (48, 64))


class Numbers:
    """A source whose samples are numbers, some of them damaged."""

    fingerprint = "numbers"
    remedy = "mend the numbers"

    def __init__(self, sizes: list[int], damaged: Iterable[int] = ()) -> None:
        self.categories: list[Any] = []
        self.problems = Problems()
        self.shard_sizes = np.array(sizes)
        self.firsts = np.cumsum(self.shard_sizes) - self.shard_sizes
        self.damaged = set(damaged)
        draw = np.random.default_rng(len(sizes))
        self.sizes = draw.integers(50, 151, (sum(sizes), 2)) * draw.choice([1, 2], (sum(sizes), 2))

    def image_sizes(self) -> np.ndarray:
        return self.sizes

    def has_instances(self) -> bool:
        return True

    def read(self, shard: int, index: int) -> tuple[bytes, Any]:
        assert 0 <= index < self.shard_sizes[shard]
        number = int(self.firsts[shard] + index)
        if number in self.damaged:
            raise DataError(f"number {number} is odd")
        height, width = self.sizes[number].tolist()
        named = {"image_id": number, "file_name": str(number)}
        return b"", {**named, "width": width, "height": height}

    def prefetch(self, shards: Iterable[int]) -> None:
        assert all(0 <= s < len(self.shard_sizes) for s in shards)

    def announce(self, steps: Iterator[list[tuple[int, int]]]) -> None: ...

    def where(self, shard: int) -> str:
        return f"shard {shard}"


@dataclass(frozen=True)
class Step:
    ids: list[int]
    canvases: set[tuple[int, int] | None]
    padding: list[bool]
    draws: list[float]


def load(_: bytes, record: Any, rng: np.random.Generator, *canvas: tuple[int, int]) -> Any:
    return record["image_id"], canvas[0] if canvas else None, rng.random()


def collate(samples: list[Any], padding: list[bool]) -> Step:
    ids, canvases, draws = zip(*samples, strict=True)
    return Step(list(ids), set(canvases), padding, list(draws))


class Dealt(SampleStream):
    """The batches of several workers in DataLoader's order, without processes."""

    workers = 1

    def __iter__(self) -> Iterator[Any]:
        epoch, consumed = self.progress.tolist()
        parts = [
            self._batches(epoch, consumed, w, self.workers, self.threads)
            for w in range(self.workers)
        ]
        for turn in itertools.count():
            try:
                yield next(parts[turn % self.workers])
            except StopIteration:
                return


@dataclass(frozen=True)
class Leg:
    """The settings for a part of an epoch, and its number of steps; None for the rest."""

    ranks: int
    batch: int
    workers: int = 1
    canvases: tuple[tuple[int, int], ...] = ()
    steps: int | None = None


def make(source: Numbers, leg: Leg, rank: int, **options: Any) -> StreamLoader:
    options = {"seed": 3, "shuffle": True, "max_corrupt": 1.0} | options
    world = World(rank, leg.ranks)
    stream = Dealt(
        source, load, collate, world=world, batch_size=leg.batch, canvases=leg.canvases, **options
    )
    stream.workers, stream.threads = max(leg.workers, 1), 1 if leg.workers else 3
    return StreamLoader(stream)


def play(
    source: Numbers, legs: list[Leg], epoch: int = 1, **options: Any
) -> tuple[list[list[Step]], dict[str, Any]]:
    """[legs][steps] global batches, each leg resumed from the one before; and the last state."""
    state: dict[str, Any] | None = None
    played = []
    for leg in legs:
        loaders = [make(source, leg, rank, **options) for rank in range(leg.ranks)]
        if state is None:
            state = loaders[0].state_dict() | {"epoch": epoch}
        for loader in loaders:
            loader.load_state_dict(state)
        before, length = loaders[0].step, len(loaders[0])
        parts = [list(itertools.islice(loader, leg.steps)) for loader in loaders]
        steps = [
            Step(
                [i for part in ranks for i in part.ids],
                {c for part in ranks for c in part.canvases},
                [p for part in ranks for p in part.padding],
                [d for part in ranks for d in part.draws],
            )
            for ranks in zip(*parts, strict=True)  # strict: equally many on every rank
        ]
        states = [loader.state_dict() for loader in loaders]
        assert all(s == states[0] for s in states)
        state = states[0]
        assert state["step"] == loaders[0].step == before + len(steps)
        assert leg.steps == len(steps) or state["step"] == length
        played.append(steps)
    assert state is not None
    return played, state


def combinations(count: int) -> list[tuple[list[int], list[Leg]]]:
    draw = random.Random(11)
    found = []
    for n in range(count):
        shard = draw.choice([1, 5, 64, 200])
        samples = draw.choice([1, 2, 7, 64, 301, 1200]) if shard > 1 else draw.choice([1, 2, 7, 64])
        sizes = [shard] * (samples // shard) + [samples % shard]
        legs, left = [], samples
        for _ in range(n % 4):
            leg = Leg(
                draw.choice([1, 2, 3, 8, 13]),
                draw.choice([1, 4, 6]),
                draw.randrange(9),
                draw.choice([(), SQUARE, SQUARER]) if n % 8 == 7 else SQUARE if n % 2 else (),
                draw.randrange(1, 4) if samples < 100 else draw.randrange(1, 15),
            )
            took = leg.ranks * leg.batch * (leg.steps or 0)
            if took < left:
                legs.append(leg)
                left -= took
        ranks = draw.choice([1, 2, 8, 64, 129, 512] if n % 8 == 0 else [1, 2, 3, 8, 13, 32])
        legs.append(Leg(ranks, draw.choice([1, 4, 6]), draw.randrange(9), SQUARE if n % 2 else ()))
        found.append((sizes, legs))
    return found


def pairs(sizes: list[int], legs: list[Leg]) -> set[tuple[Any, ...]]:
    """All pairs of settings in a combination, within a leg and between consecutive legs.

    World sizes above 32 count as equal, and so do more than three workers.
    """
    data = [("shard", sizes[0]), ("samples", sum(sizes)), ("legs", len(legs))]
    settings = [
        {
            "ranks": min(leg.ranks, 33),
            "batch": leg.batch,
            "workers": min(leg.workers, 4),
            "canvases": leg.canvases,
        }
        for leg in legs
    ]
    found: set[tuple[Any, ...]] = set()
    for leg in settings:
        found |= {*itertools.combinations([*data, *leg.items()], 2)}
    for before, after in itertools.pairwise(settings):
        found |= {(name, before[name], after[name]) for name in before}
    return found


def covering(swept: list[tuple[list[int], list[Leg]]]) -> list[tuple[list[int], list[Leg]]]:
    """Chooses a few combinations, greedily, that together cover every pair of settings."""
    of_each = [pairs(*one) for one in swept]
    left, chosen = set().union(*of_each), []
    while left:
        best = max(range(len(swept)), key=lambda n: len(of_each[n] & left))
        left -= of_each[best]
        chosen.append(swept[best])
    return chosen


@cache
def few() -> list[tuple[list[int], list[Leg]]]:
    return covering(combinations(400))


def check(
    source: Numbers, legs: list[Leg], played: list[list[Step]], counts: np.ndarray | None = None
) -> None:
    every = np.arange(len(source.sizes))
    if counts is not None:
        every = np.repeat(every, counts)
    samples = len(every)
    seen = [i for steps in played for step in steps for i in step.ids]
    assert sorted(seen[:samples]) == every.tolist(), legs
    order = EpochOrder(source.shard_sizes, 3, 1, shuffle=True, repeats=counts)
    first = order.locate(np.arange(len(seen)))
    wrap = (source.firsts[first[0]] + first[1])[: len(seen) - samples].tolist()
    assert seen[samples:] == wrap, legs
    assert len(wrap) < legs[-1].ranks * legs[-1].batch, legs
    for leg, steps in zip(legs, played, strict=True):
        for step in steps:
            assert len(step.ids) == leg.ranks * leg.batch
            (canvas,) = step.canvases  # the same on all ranks
            if not leg.canvases:
                assert canvas is None
                continue
            assert canvas in leg.canvases
            for width, height in source.sizes[step.ids]:
                scales = [min(w / width, h / height) for h, w in (canvas, leg.canvases[0])]
                assert scales[0] == scales[1]  # as large as on the largest canvas
                if canvas == leg.canvases[0]:
                    continue
                fitting = [
                    h * w for h, w in leg.canvases if min(w / width, h / height) == scales[1]
                ]
                assert canvas[0] * canvas[1] == min(fitting)


def every() -> list[tuple[list[int], list[Leg]]]:
    return combinations(400)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [few, pytest.param(every, marks=pytest.mark.release)])
def test_every_sample_once_whatever_the_worlds_and_canvases(
    chosen: Callable[[], list[tuple[list[int], list[Leg]]]],
) -> None:
    swept = chosen()
    assert len({len(legs) for _, legs in swept}) == 4
    assert {leg.ranks for _, legs in swept for leg in legs} >= {1, 512}
    assert {leg.workers for _, legs in swept for leg in legs} == set(range(9))
    for sizes, legs in swept:
        source = Numbers(sizes)
        played, state = play(source, legs)
        check(source, legs, played)
        assert state["consumed"] == len(source.sizes)


def rare(source: Numbers) -> Repeats:
    """Every third number is of a class of its own, with factors of 1.3 to 4.3."""
    numbers = np.arange(len(source.sizes))
    factors = np.where(numbers % 3, 1, 1.3 + numbers % 4).astype(np.float32)
    return Repeats(factors, 0.5)


def test_repeated_images_come_as_counted_whatever_the_worlds_and_canvases() -> None:
    for sizes, legs in few()[::4]:
        source = Numbers(sizes)
        repeats = rare(source)
        played, state = play(source, legs, repeats=repeats)
        check(source, legs, played, repeats.counts(3, 1))
        assert state["consumed"] == repeats.samples


@pytest.mark.parametrize("canvases", [(), SQUARE])
def test_an_epoch_with_repeated_images_goes_on_undisturbed(canvases: Any) -> None:
    source = Numbers([40] * 10)
    repeats = rare(source)
    (truth,), _ = play(source, [Leg(3, 4, 2, canvases)], repeats=repeats)
    draws = [draw for step in truth for draw in step.draws]
    assert len({*draws[: repeats.samples]}) == repeats.samples  # each is augmented in its own way
    for stop in (1, 17, len(truth) - 2):
        legs = [
            Leg(3, 4, 1, canvases, stop),
            Leg(2, 6, 3, canvases, 1),
            Leg(12, 1, 2, canvases),
        ]
        played, _ = play(source, legs, repeats=repeats)
        assert [step for steps in played for step in steps] == truth


@pytest.mark.parametrize("canvases", [(), SQUARE])
@pytest.mark.parametrize("moved", [Leg(6, 2), Leg(2, 6), Leg(1, 12), Leg(12, 1)])
def test_the_same_global_batch_goes_on_undisturbed(canvases: Any, moved: Leg) -> None:
    source = Numbers([40] * 10)
    (truth,), _ = play(source, [Leg(3, 4, 2, canvases)])
    for stop in (1, 2, 17, 30, len(truth) - 2):
        legs = [
            Leg(3, 4, 1, canvases, stop),
            Leg(moved.ranks, moved.batch, 3, canvases, 1),
            Leg(3, 4, 2, canvases),
        ]
        played, _ = play(source, legs)
        assert [step for steps in played for step in steps] == truth


def test_full_batches_of_narrow_canvases_come_where_they_are_read() -> None:
    source = Numbers([40] * 100)
    loader = make(source, Leg(1, 16, 1, SQUARE), 0)
    canvases = [next(iter(step.canvases)) for step in loader]
    counts = {c: canvases.count(c) for c in SQUARE}
    assert min(counts.values()) > 20
    assert canvases[-1] == SQUARE[0]  # the rest
    order = EpochOrder(source.shard_sizes, 3, 0, shuffle=True)
    number = source.firsts[(at := order.locate(np.arange(4000)))[0]] + at[1]
    place = np.argsort(number)
    positions = [place[step.ids].max() for step in make(source, Leg(1, 16, 1, SQUARE), 0)]
    assert positions[:-3] == sorted(positions[:-3])


def test_a_resume_at_another_batch_size_keeps_step_and_length_together() -> None:
    source = Numbers([50] * 8)
    first = make(source, Leg(1, 4), 0)
    list(itertools.islice(first, 30))  # 120 samples
    second = make(source, Leg(1, 32), 0)
    second.load_state_dict(first.state_dict())
    assert (second.step, len(second)) == (4, 13)  # 280 left are 9 steps
    assert len(list(second)) == 9
    assert second.step == 13
    assert len(list(second)) == 13  # the next epoch is whole
    third = make(source, Leg(1, 32), 0)
    over = first.state_dict() | {"consumed": 400}
    third.load_state_dict(over)
    assert (third.step, len(third)) == (13, 13)


@pytest.mark.parametrize("canvases", [(), SQUARE])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_damaged_samples_are_replaced_and_counted(canvases: Any, workers: int) -> None:
    sizes, damaged = [25] * 8, {3, 4, 5, 77, 150}
    truth, _ = play(Numbers(sizes), [Leg(3, 4, workers, canvases)])
    source = Numbers(sizes, damaged)
    loaders = [make(source, Leg(3, 4, workers, canvases), rank) for rank in range(3)]
    for loader in loaders:
        loader.load_state_dict(loader.state_dict() | {"epoch": 1})
    with pytest.warns(UserWarning, match="skipped, as it cannot be used: number"):
        parts = [list(loader) for loader in loaders]
    assert {len(part) for part in parts} == {len(truth[0])}
    for step, *ranks in zip(truth[0], *parts, strict=True):
        assert step.canvases == set().union(*(part.canvases for part in ranks))
        for was, now in zip(step.ids, [i for part in ranks for i in part.ids], strict=True):
            assert now == was if was not in damaged else now not in damaged
    # The rank of a skipped sample reports it once, even if several ranks tried it as replacement.
    skipped = [item for loader in loaders for item in loader.skipped.items()]
    assert sorted(text for _, text in skipped) == sorted(f"number {n} is odd" for n in damaged)
    assert sorted(25 * shard + index for (shard, index), _ in skipped) == sorted(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again, _ = play(source, [Leg(3, 4, 1, canvases, 7), Leg(1, 12, workers, canvases)])
    whole = [[i for part in ranks for i in part.ids] for ranks in zip(*parts, strict=True)]
    assert [step.ids for steps in again for step in steps] == whole  # the same replacements


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_what_replaces_a_damaged_sample_is_not_evaluated(ranks: int) -> None:
    damaged = {0, 1, 2, 3, 19, 22}
    source = Numbers([10, 13], damaged)
    (steps,), _ = play(source, [Leg(ranks, 2)], epoch=0, shuffle=False, pad=True)
    pairs = [pair for step in steps for pair in zip(step.ids, step.padding, strict=True)]
    assert [i for i, padding in pairs if not padding] == [i for i in range(23) if i not in damaged]
    assert len(pairs) == -(-23 // (2 * ranks)) * 2 * ranks


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_too_many_damaged_samples_end_the_run_with_their_list(workers: int) -> None:
    damaged = {10, 20, 30, 40, 50}
    source = Numbers([50] * 4, damaged)
    leg = Leg(1, 4, workers)
    assert len(list(make(source, leg, 0, max_corrupt=0.025))) == 50
    with pytest.raises(InputError, match=r"used, 5, where .*=0\.0249 of a rank's 200 in") as error:
        list(make(source, leg, 0, max_corrupt=0.0249))
    assert all(f"number {n} is odd" in str(error.value) for n in damaged)
    assert "\n" not in str(error.value)
    many = Numbers([50] * 4, range(60))
    with pytest.raises(InputError, match=r"; and \d+ more: mend the numbers, or raise max_corrupt"):
        list(make(many, leg, 0, max_corrupt=0.2))
    with pytest.raises(InputError, match="number 0 is odd"):
        list(make(Numbers([3], range(3)), Leg(1, 2), 0))
    # The limit is for a rank's own samples: 2 of 100 each.
    halves = [make(Numbers([50] * 4, {10, 20}), Leg(2, 4), r, max_corrupt=0.02) for r in (0, 1)]
    assert {len(list(loader)) for loader in halves} == {25}
    own = [i for step in make(Numbers([50] * 4), Leg(2, 4), 0) for i in step.ids]
    assert len(own) == 100
    three = Numbers([50] * 4, own[:3])
    with pytest.raises(InputError, match=r"used, 3, where max_corrupt=0\.02 of a rank's 100 in"):
        list(make(three, Leg(2, 4), 0, max_corrupt=0.02))


@pytest.mark.filterwarnings("ignore:skipped")
def test_the_account_is_of_one_epoch() -> None:
    loader = make(Numbers([20], {7}), Leg(1, 4), 0)
    for _ in range(3):
        list(loader)
        assert loader.skipped == {(0, 7): "number 7 is odd"}
    loader.stream.source.damaged.clear()  # type: ignore[attr-defined]
    list(loader)
    assert loader.skipped == {}


def test_the_next_windows_shards_are_asked_for_while_one_is_read() -> None:
    asked: list[set[int]] = []

    class Asked(Numbers):
        def read(self, shard: int, index: int) -> tuple[bytes, Any]:
            assert shard in asked[-1]
            return super().read(shard, index)

        def prefetch(self, shards: Iterable[int]) -> None:
            asked.append(set(shards))

    windows = 3
    list(make(Asked([1] * WINDOW * windows), Leg(1, 4), 0))
    assert [len(shards) for shards in asked] == [2 * WINDOW, 2 * WINDOW, WINDOW]
    for now, then in itertools.pairwise(asked):
        assert len(now & then) == WINDOW


def test_how_long_batches_were_waited_for_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a batch takes 3 seconds, and using it 100, by a fake clock."""
    now = [0.0]
    monkeypatch.setattr("autotimm.streaming.loader.time.perf_counter", lambda: now[0])
    loader = make(Numbers([6]), Leg(1, 2), 0)

    def finish(batch: Any) -> Any:
        now[0] += 3
        return batch

    loader._finish = finish
    for epoch in (1, 2):
        for step, _ in enumerate(loader, 1):
            assert loader.waited == 3 * (step + 3 * (epoch - 1))
            now[0] += 100


@pytest.mark.parametrize("leg", [Leg(1, 4), Leg(2, 3, 2), Leg(2, 4, 3, ((64, 64), (64, 32)))])
@pytest.mark.parametrize("paired", [0.0, 0.4])
def test_what_is_announced_is_what_is_read(leg: Leg, paired: float) -> None:
    announced: list[list[list[tuple[int, int]]]] = []
    read: list[tuple[int, int]] = []

    class Asked(Numbers):
        def read(self, shard: int, index: int) -> tuple[bytes, Any]:
            read.append((shard, index))
            return super().read(shard, index)

        def announce(self, steps: Iterator[list[tuple[int, int]]]) -> None:
            announced.append(list(steps))

    def load_two(*given: Any, other: Any = None) -> Any:
        return load(*given)

    for rank in range(leg.ranks):
        loader = make(Asked([9, 5, 20] * 20), leg, rank, paired=paired)
        loader.stream.load = load_two
        for _ in range(2):
            announced.clear()
            read.clear()
            steps = sum(1 for _ in loader)
            assert sum(map(len, announced)) == steps
            turns = [part[k] for k in range(steps) for part in announced if k < len(part)][:steps]
            assert sorted(read) == sorted(place for step in turns for place in step)
