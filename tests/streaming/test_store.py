"""Sources: a folder and its shards give the same; what is no source is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from servers import Server, serve
from sources import everything

from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.data.synthetic import make_dataset
from autotimm.files import remote
from autotimm.images.decode import DataError
from autotimm.sharding.cli import shard
from autotimm.streaming.store import ShardSource, open_source, split_names
from autotimm.structures import InputError


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted") / "coco"
    make_dataset(folder, train=10, val=3, size=64)
    return folder


@pytest.fixture(scope="module")
def shard_folder(coco_folder: Path) -> Path:
    shard(coco_folder, coco_folder.parent / "shards", samples_per_shard=4)
    return coco_folder.parent / "shards"


@pytest.fixture
def copy(shard_folder: Path, tmp_path: Path) -> Path:
    """A copy of the shards for a test to damage."""
    return shutil.copytree(shard_folder, tmp_path / "copy")


@pytest.fixture
def server(copy: Path) -> Iterator[Server]:
    with serve(copy) as server:
        yield server


def test_image_sizes_are_the_records(coco_folder: Path, shard_folder: Path, copy: Path) -> None:
    (copy / "train-000001.idx.npy").unlink()
    for folder in (coco_folder, shard_folder, copy):
        source = open_source(folder, "train")
        sizes = source.image_sizes()
        assert sizes.dtype == np.int64
        records = [record for _, record in everything(source)]  # type: ignore[arg-type]
        assert sizes.tolist() == [[r["width"], r["height"]] for r in records]


def test_a_source_survives_pickling(shard_folder: Path) -> None:
    source = ShardSource(str(shard_folder), "train")
    before = everything(source)
    assert everything(pickle.loads(pickle.dumps(source))) == before  # noqa: S301


def test_a_split_without_shards_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    nothing = {"images": 0, "instances": 0, "crowd": 0, "problems": {}, "shards": []}
    manifest["splits"]["none"] = nothing
    del manifest["sha256"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"manifest\.json: .*a split has no images"):
        open_source(copy, "none")


def test_attributes_of_sources(coco_folder: Path, shard_folder: Path, tmp_path: Path) -> None:
    for folder in (coco_folder, shard_folder):
        assert open_source(folder, "train").problems.counts == {}
        assert open_source(folder, "train").has_instances()
    folder = shutil.copytree(coco_folder, tmp_path / "coco")
    image = min((folder / "train2017").iterdir())
    image.unlink()
    problems = open_source(folder, "train").problems
    assert [c for k, c in problems.counts.items() if k.endswith("(image left out)")] == [1]
    assert image.name in problems.lines()[0]


def test_a_missing_image_is_named(coco_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(coco_folder, tmp_path / "coco")
    source = open_source(folder, "train")
    image = min((folder / "train2017").iterdir())
    image.unlink()
    with pytest.raises(DataError, match=image.name):
        everything(source)  # type: ignore[arg-type]


def test_a_location_that_is_no_source_is_refused(
    coco_folder: Path, shard_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_source(tmp_path / "nothing", "train")
    with pytest.raises(InputError, match=r"no annotations/instances.*manifest\.json"):
        open_source(tmp_path, "train")
    for folder in (coco_folder, shard_folder):
        assert split_names(folder) == ["train", "val"]
        with pytest.raises(InputError, match="no split 'test', only train, val"):
            open_source(folder, "test")


@pytest.mark.parametrize(
    "location",
    ["ftp://host/x", "pipe:cat shards.tar", "gs://b/x", "simplecache::http://host/x"],
)
def test_other_urls_are_refused(location: str) -> None:
    with pytest.raises(InputError, match="are not read: give a folder, or a file, http, https"):
        open_source(location, "train")


def test_s3_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install s3fs"):
        open_source("s3://bucket/shards", "train")


def test_urls_join_before_their_query() -> None:
    assert remote.join("https://h/a/?sig=1/2", "m.json") == "https://h/a/m.json?sig=1/2"


def test_the_data_module_hands_on_the_limit(server: Server, tmp_path: Path) -> None:
    given = {"cache_dir": tmp_path / "cache", "num_workers": 0}
    data = InstanceSegmentationDataModule(server.url, cache_limit="1kB", **given)
    with pytest.raises(InputError, match=r"cache_limit is 1,000 bytes, but .* need [0-9,]+: set"):
        data.source("train")
    with pytest.raises(InputError, match=r"cache_limit: 512MiB, 1GB or .* not 'much'"):
        InstanceSegmentationDataModule(server.url, cache_limit="much", **given)
    data = InstanceSegmentationDataModule(server.url, cache_limit="1GiB", **given)
    assert data.source("train").files.cache.limit == 2**30  # type: ignore[attr-defined]
