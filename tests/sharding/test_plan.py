"""The plan of the shards: every sample once, within the limits, under a safe key."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from shard_runs import many

from autotimm.sharding import cli
from autotimm.sharding.plan import make_keys, plan_shards
from autotimm.sharding.tar_writer import tar_header


@pytest.mark.parametrize("seed", range(30))
def test_a_plan_holds_every_sample_once_in_order_within_its_limits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1000, 90_000, rng.integers(1, 300)).tolist()
    keys = [f"k{n}" for n in range(len(sizes))]
    samples, room = int(rng.integers(1, 40)), int(rng.integers(50_000, 900_000))
    plans = plan_shards("val", keys, sizes, samples, room)
    assert [s for p in plans for s in p.samples] == list(enumerate(keys))
    assert [p.name for p in plans] == [f"val-{n:06d}.tar" for n in range(len(plans))]
    for plan, following in itertools.zip_longest(plans, plans[1:]):
        filled = sum(sizes[i] for i, _ in plan.samples)
        assert 1 <= len(plan.samples) <= samples
        assert filled <= room - 10240 or len(plan.samples) == 1
        if following:  # no shard ends early
            more = sizes[following.samples[0][0]]
            assert len(plan.samples) == samples or filled + more > room - 10240


def test_the_limit_of_bytes_holds(tmp_path: Path) -> None:
    many(tmp_path / "coco", 40)
    manifest = cli.shard(tmp_path / "coco", tmp_path / "out", max_shard_size=60_000)
    sizes = [s.bytes for s in manifest.splits["train"].shards]
    assert len(sizes) > 3 and max(sizes) <= 60_000


def test_keys_are_unique_safe_and_as_near_the_name_as_can_be() -> None:
    names = [
        "000000000139.jpg",
        "a/b.c.jpg",
        "a_b_c.png",
        "a_b_c.jpg",
        "ü ñ/日.jpg",
        "....jpg",
        "x" * 300 + ".jpg",
        "x" * 301 + ".jpg",
        "__meta__.jpg",
        "same.jpg",
        "same.jpg",
        "same-10.jpg",
        "--rf.jpg",
        "_-.jpg",
    ]
    keys = make_keys((name, n) for n, name in enumerate(names))
    assert keys[:4] == ["000000000139", "a_b_c", "a_b_c-2", "a_b_c-3"]
    assert keys[9:] == ["same", "same-10", "same-10-11", "rf", "image-13"]
    assert len(set(keys)) == len(keys) == len(names)
    assert all(0 < len(key) < 95 and key.isascii() and "." not in key for key in keys)
    assert all(key.replace("_", "").replace("-", "").isalnum() for key in keys)
    assert all(key[0].isalnum() for key in keys), "'-' begins an option of tar's"
    # A tar has room for a name with the longest id.
    same = ("x" * 100, 0), ("x" * 101, -(2**63)), ("x" * 102, -(2**63) + 1)
    assert all(tar_header(f"{key}.json", 0) for key in make_keys(same))
