"""The job: which images, in which order, under which keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from coco_folder import image, picture, write
from shard_runs import (
    PAIRS,
    files_of,
    shard,
    source,
)

from autotimm.coco.layouts import find_splits
from autotimm.sharding import job

pytestmark = pytest.mark.usefixtures("own_threads", "one_worker")


def test_a_shuffle_is_seeded_and_stays_as_it_is(tmp_path: Path) -> None:
    assert job.choose(6, "train", None, None) == [0, 1, 2, 3, 4, 5]
    assert job.choose(6, "train", 4, None) == [0, 1, 2, 3]
    for seed in (0, 1):
        order = job.choose(1000, "train", None, seed)
        assert sorted(order) == list(range(1000)) and order != sorted(order)
        assert order == job.choose(1000, "train", None, seed)
        assert order[:30] == job.choose(1000, "train", 30, seed)
        assert order != job.choose(1000, "val", None, seed)
    assert job.choose(8, "train", None, 3) == SHUFFLED  # with every version of NumPy
    coco = source(tmp_path / "coco")
    assert shard(coco, tmp_path / "a", *PAIRS, "--shuffle", 3) == 0
    assert shard(coco, tmp_path / "b", *PAIRS, "--shuffle", 3, "--workers", 3) == 0
    assert shard(coco, tmp_path / "c", *PAIRS, "--shuffle", 4) == 0
    a, b, c = (files_of(tmp_path / name) for name in "abc")
    assert a == b
    assert any(a[name] != c[name] for name in a if name.endswith(".tar"))


def test_a_shuffle_renames_no_sample(tmp_path: Path) -> None:
    """Of files whose names give the same key, the first in the source gets it, in any order."""
    names = {3: "a.b.jpg", 7: "a_b.jpg", 5: "a b.jpg"}
    images = [image(id=n, file_name=name) for n, name in names.items()]
    files = {one["file_name"]: picture() for one in images}
    coco = write(tmp_path / "coco", images, [], files=files)
    orders = []
    for seed in range(6):
        (plan,) = job.read_job([*find_splits(coco).values()], job.Options(shuffle=seed)).plans
        orders.append([position for position, _ in plan[1].samples])
        assert dict(plan[1].samples) == {0: "a_b", 1: "a_b-7", 2: "a_b-5"}
    assert len({*map(tuple, orders)}) > 3


SHUFFLED = [6, 5, 1, 2, 0, 4, 7, 3]
