"""Shards that are written again while a run reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from servers import serve

from autotimm.data.synthetic import make_dataset
from autotimm.files.retry import Retry
from autotimm.sharding.cli import shard
from autotimm.streaming.store import ShardSource
from autotimm.structures import InputError

QUICK = Retry(attempts=3, wait=0.01)


@pytest.mark.parametrize(("remote", "ranges"), [(True, True), (True, False), (False, False)])
def test_shards_that_are_written_again_are_told_as_that(
    remote: bool, ranges: bool, tmp_path: Path
) -> None:
    """Nothing that is good for the new shards is deleted, or told to be."""
    coco_folder = tmp_path / "coco"
    make_dataset(coco_folder, train=10, val=3, size=64)
    folder, cache = tmp_path / "shards", tmp_path / "cache"
    shard(coco_folder, folder, samples_per_shard=2)
    with serve(folder) as server:
        server.ranges = ranges
        where = server.url if remote else folder
        source = ShardSource(where, "train", cache, retry=QUICK)
        source.read(0, 0)
        shard(coco_folder, folder, samples_per_shard=3, overwrite=True)
        begun = server.requests.copy()
        for _ in range(2):
            with pytest.raises(InputError, match="its shards were written again while") as error:
                source.read(1, 0)
            assert "start again" in str(error.value) and "delete" not in str(error.value)
        asked = server.requests - begun
        assert all(count <= 4 for name, count in asked.items() if name != "manifest.json")
        ShardSource(where, "train", cache, retry=QUICK).read(1, 0)
