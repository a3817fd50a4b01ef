"""Local shards: read as tarfile reads them, and damage is found."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from sources import everything

from autotimm.data.synthetic import make_dataset
from autotimm.images.decode import DataError
from autotimm.sharding.cli import shard
from autotimm.streaming import open_shard
from autotimm.streaming.store import FolderSource, ShardSource, open_source
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


def test_shards_are_what_tarfile_and_the_folder_say(coco_folder: Path, shard_folder: Path) -> None:
    source = open_source(str(shard_folder), "train")
    assert source.shard_sizes.tolist() == [4, 4, 2]
    assert [c.id for c in source.categories] == [1, 3, 7, 18]
    members = []
    for tar in sorted(shard_folder.glob("train-*.tar")):
        with tarfile.open(tar) as file:
            members += [(m.name, file.extractfile(m).read()) for m in file]  # type: ignore[union-attr]
    images = [data for name, data in members if not name.endswith(".json")]
    records = [json.loads(data) for name, data in members if name.endswith(".json")]
    assert everything(source) == list(zip(images, records, strict=True))

    folder = open_source(coco_folder, "train")
    assert isinstance(folder, FolderSource)
    assert everything(folder) == everything(source)
    assert folder.categories == source.categories
    assert folder.fingerprint != source.fingerprint
    assert source.fingerprint == open_source(f"file://{shard_folder}", "train").fingerprint
    assert source.fingerprint != open_source(str(shard_folder), "val").fingerprint


def test_a_shard_without_its_index_reads_the_same(copy: Path, shard_folder: Path) -> None:
    for index in copy.glob("*.npy"):
        index.unlink()
    assert everything(ShardSource(str(copy), "train")) == everything(
        ShardSource(str(shard_folder), "train")
    )


def test_raw_is_what_read_parses(shard_folder: Path) -> None:
    source = ShardSource(str(shard_folder), "train")
    image, text = source.raw(1, 2)
    assert source.read(1, 2) == (image, json.loads(bytes(text)))


def test_a_tar_that_shrinks_while_it_is_open_raises(copy: Path) -> None:
    source = ShardSource(str(copy), "train")
    source.read(0, 0)
    with (copy / "train-000000.tar").open("r+b") as file:
        file.truncate(700)
    for index in range(4):
        with pytest.raises(DataError, match=rf"sample {index} of .*its bytes have changed"):
            source.read(0, index)


def test_image_and_record_may_lie_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"image_id": 1, "file_name": "a.jpg", "width": 5, "height": 4, "annotations": []}
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for name, data in (
            ("a.json", json.dumps(record).encode()), ("a.bin", bytes(200_000)), ("a.jpg", b"x" * 9)
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    source = ShardSource(str(tmp_path), "train", tmp_path / "cache")
    assert everything(source) == [(b"x" * 9, record)]
    monkeypatch.setattr(open_shard, "_GAP", 1 << 20)
    assert everything(source) == [(b"x" * 9, record)]


def test_damage_is_found_on_opening(copy: Path) -> None:
    tar = copy / "train-000001.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[:-512])
    with pytest.raises(InputError, match=r"train-000001\.tar: has \d+ bytes, manifest\.json says"):
        open_source(copy, "train")
    tar.unlink()
    with pytest.raises(InputError, match=r"train-000001\.tar: .* No such file"):
        open_source(copy, "train")
    open_source(copy, "val")

    flipped = bytearray(content)
    flipped[3000] ^= 1
    tar.write_bytes(flipped)
    with pytest.raises(InputError, match=r"train-000001\.tar: .*sha256"):
        open_source(copy, "train", verify=True)
    tar.write_bytes(content)
    open_source(copy, "train", verify=True)


def test_a_damaged_index_is_refused(copy: Path) -> None:
    index = copy / "train-000000.idx.npy"
    index.write_bytes(index.read_bytes()[:-1] + b"\x07")
    with pytest.raises(InputError, match=r"train-000000\.idx\.npy"):
        ShardSource(str(copy), "train").read(0, 0)


def test_an_index_that_is_no_file_is_refused(copy: Path) -> None:
    index = copy / "train-000000.idx.npy"
    index.unlink()
    os.mkfifo(index)
    with pytest.raises(InputError, match=r"000000\.idx\.npy: cannot be read: not a regular file"):
        ShardSource(str(copy), "train").image_sizes()


def test_a_damaged_record_names_its_sample(copy: Path) -> None:
    tar = copy / "train-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b'"iscrowd":0', b'"iscrowd":7', 1))
    with pytest.raises(DataError, match=r"sample \d of .*000000\.tar: its bytes have changed"):
        everything(ShardSource(str(copy), "train"))
    (copy / "train-000000.idx.npy").unlink()  # a new one would have the wrong checksum
    with pytest.raises(InputError, match=r"train-000000\.tar: .*\(sha256 differs\): copy it again"):
        ShardSource(str(copy), "train").read(0, 0)


def test_shards_that_changed_places_are_refused_without_their_indices_too(
    coco_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    shard(coco_folder, folder, samples_per_shard=1)
    by_size: dict[int, Path] = {}
    for tar in sorted(folder.glob("train-*.tar")):
        other = by_size.setdefault(tar.stat().st_size, tar)
        if other != tar:
            break
    else:
        pytest.fail("no two shards of one size")
    number = int(tar.stem[-6:])
    content = tar.read_bytes()
    tar.write_bytes(other.read_bytes())
    other.write_bytes(content)
    tar.with_suffix(".idx.npy").unlink()
    source = ShardSource(str(folder), "train")
    for attempt in (lambda: source.read(number, 0), source.image_sizes):
        with pytest.raises(InputError, match=rf"{tar.name}: .*sha256 differs"):
            attempt()


def test_a_tar_with_something_else_in_it(copy: Path) -> None:
    """A tar with the manifest's size and sha256 may still have other members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("a.txt"))
    content = (copy / "train-000002.tar").read_bytes()
    other = buffer.getvalue()[: len(content)].ljust(len(content), b"\0")
    (copy / "train-000002.tar").write_bytes(other)
    (copy / "train-000002.idx.npy").unlink()
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["splits"]["train"]["shards"][2]["sha256"] = hashlib.sha256(other).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    source = ShardSource(str(copy), "train")
    with pytest.raises(InputError, match=r"train-000002\.tar: .*not one image and one"):
        source.read(2, 0)
