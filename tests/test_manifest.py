"""The manifest and the index: round trips, damage, and the tar scanner against tarfile."""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autotimm.coco import Category
from autotimm.sharding.manifest import (
    INDEX_DTYPE,
    Manifest,
    Shard,
    SplitInfo,
    build_index,
    index_bytes,
    read_index,
    read_manifest,
    whole_file,
    write_manifest,
)
from autotimm.structures import InputError

SHARD = Shard("train-000000.tar", 2, 10240, "0" * 64, "train-000000.idx.npy", "f" * 64)
SPLIT = SplitInfo(2, 5, 1, {"odd": 3}, [SHARD])
MANIFEST = Manifest([Category(0, "a"), Category(90, "b", "c")], {"train": SPLIT})


def test_round_trip(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.json", MANIFEST)
    for source in (
        tmp_path,
        str(tmp_path / "manifest.json"),
        (tmp_path / "manifest.json").read_bytes(),
    ):
        assert read_manifest(source) == MANIFEST
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["format"] == "autotimm-shards" and content["version"] == 1
    assert content["categories"][1] == {"id": 90, "name": "b", "supercategory": "c"}
    assert content["splits"]["train"] == {
        "images": 2,
        "instances": 5,
        "crowd": 1,
        "problems": {"odd": 3},
        "shards": [
            {
                "name": "train-000000.tar",
                "samples": 2,
                "bytes": 10240,
                "sha256": "0" * 64,
                "index": {"name": "train-000000.idx.npy", "sha256": "f" * 64},
            }
        ],
    }


def changed(keys: str, value: object) -> bytes:
    """The manifest as text with one value replaced, or removed if it is None."""
    content = json.loads(text())
    place = content
    *path, last = (int(k) if k.isdigit() else k for k in keys.split("."))
    for key in path:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return json.dumps(content).encode()


def text() -> bytes:
    content = {
        "format": "autotimm-shards",
        "version": 1,
        "autotimm": "0.1.0",
        "categories": [{"id": 1, "name": "a", "supercategory": ""}],
        "splits": {
            "train": {
                "images": 2,
                "instances": 5,
                "crowd": 1,
                "problems": {},
                "shards": [
                    {
                        "name": "train-000000.tar",
                        "samples": 2,
                        "bytes": 10240,
                        "sha256": "0" * 64,
                        "index": {"name": "train-000000.idx.npy", "sha256": "f" * 64},
                    }
                ],
            }
        },
    }
    return json.dumps(content).encode()


SHARD_AT = "splits.train.shards.0"


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ("format", "other"),
        ("version", 2),
        ("version", None),
        ("categories", []),
        ("categories", {}),
        ("categories.0", {"id": "x", "name": "a", "supercategory": ""}),
        ("categories.0.name", ""),
        ("splits", []),
        ("splits.train", []),
        ("splits.train.images", 3),
        ("splits.train.shards", []),
        ("splits.train.instances", -1),
        ("splits.train.crowd", 1.5),
        ("splits.train.problems", {"odd": "many"}),
        (SHARD_AT, "train-000000.tar"),
        (f"{SHARD_AT}.name", "../train-000000.tar"),
        (f"{SHARD_AT}.name", "/etc/passwd"),
        (f"{SHARD_AT}.name", "a\\b.tar"),
        (f"{SHARD_AT}.name", ".."),
        (f"{SHARD_AT}.name", ""),
        (f"{SHARD_AT}.name", 7),
        (f"{SHARD_AT}.index.name", "x/y.npy"),
        (f"{SHARD_AT}.samples", True),
        (f"{SHARD_AT}.bytes", None),
        (f"{SHARD_AT}.bytes", 2047),
        (f"{SHARD_AT}.sha256", "0" * 63),
        (f"{SHARD_AT}.index.sha256", "G" * 64),
    ],
)
def test_damaged_manifests_are_refused(keys: str, value: object) -> None:
    read_manifest(text())
    with pytest.raises(InputError, match=r"manifest\.json: not a manifest of shards: ."):
        read_manifest(changed(keys, value))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"null", b"{}"])
def test_what_is_no_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match="not a manifest of shards"):
        read_manifest(content)


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"manifest\.json: cannot be read"):
        read_manifest(tmp_path / "manifest.json")


@pytest.mark.parametrize(
    ("images", "shards", "message"),
    [
        (0, [], "a split has no images"),
        (0, [{"samples": 0}], "train-000000.tar of 10,240 bytes cannot hold 0 samples"),
        (10**12, [{"samples": 10**12}], "cannot hold 1,000,000,000,000 samples"),
        (11, [{"samples": 11}], "cannot hold 11 samples"),
    ],
)
def test_counts_that_cannot_be_are_refused(images: int, shards: list, message: str) -> None:
    content = json.loads(text())
    split = content["splits"]["train"]
    split["shards"] = [split["shards"][0] | changes for changes in shards]
    split["images"] = images
    with pytest.raises(InputError, match=rf"manifest\.json: .*{message}"):
        read_manifest(json.dumps(content).encode())


def test_a_shard_named_twice_is_refused() -> None:
    shard = json.loads(text())["splits"]["train"]["shards"][0]
    content = json.loads(changed("splits.train.shards", [shard, shard]))
    content["splits"]["train"]["images"] = 4
    with pytest.raises(InputError, match="names a shard twice"):
        read_manifest(json.dumps(content).encode())


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half")
        assert not path.exists()
        _ = 1 / 0
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"old"
    with whole_file(path) as file:
        file.write(b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"new"


def test_data_reaches_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    fsync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (order.append("rename"), rename(a, b)))
    with whole_file(tmp_path / "file") as file:
        file.write(b"data")
    assert order == ["fsync", "rename"]


RECORD = {"image_id": -5, "file_name": "x.jpg", "width": 7, "height": 9, "annotations": []}


def tar(members: list[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def members() -> list[tuple[str, bytes]]:
    made = []
    for number, size in enumerate((0, 1, 511, 512, 513, 4000)):
        record = json.dumps(RECORD | {"image_id": number - 3}).encode()
        made += [
            (f"folder/key{number}.jpg", os.urandom(size)),
            (f"folder/key{number}.json", record),
        ]
    made[2], made[3] = made[3], made[2]  # the order inside a sample is the writer's affair
    return made


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_offsets_against_tarfile(kind: int) -> None:
    data = tar(members(), kind)
    index = build_index(memoryview(data))
    assert index.dtype == INDEX_DTYPE and len(index) == 6
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        known = {m.name: (m.offset_data, m.size) for m in archive.getmembers()}
    for number, row in enumerate(index):
        place = row["image_offset"], row["image_bytes"]
        assert place == known[f"folder/key{number}.jpg"]
        assert (row["json_offset"], row["json_bytes"]) == known[f"folder/key{number}.json"]
        assert (row["width"], row["height"], row["image_id"]) == (7, 9, number - 3)


def test_a_cut_shard_is_noticed_wherever_it_is_cut() -> None:
    data = tar(members())
    end = data.rstrip(b"\0")
    for cut in range(0, len(end), 256):
        with pytest.raises(InputError, match="cut off"):
            build_index(data[:cut])


def test_a_flipped_header_byte_is_noticed() -> None:
    data = bytearray(tar(members()))
    for position in (0, 124, 130, 148, 156, 257):
        flipped = data.copy()
        flipped[position] ^= 1
        with pytest.raises(InputError, match="shard"):
            build_index(bytes(flipped))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("a.jpg", b"1"), ("b.jpg", b"2")], "'a' of the shard is not one image and one .json"),
        ([("a.jpg", b"1"), ("a.png", b"2")], "not one image and one .json"),
        ([("a.jpg", b"1")], "not one image and one .json"),
        ([("a.jpg", b"1"), ("a.json", b"{}")], "a.json of the shard is not the record"),
        ([("a.jpg", b"1"), ("a.json", b"[")], "a.json of the shard is not the record"),
        ([("n" * 150 + ".jpg", b"1")], "not plain ustar"),
    ],
)
def test_what_is_no_shard_is_refused(changes: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_index(tar(changes, tarfile.PAX_FORMAT))


def test_index_files() -> None:
    index = np.zeros(2, INDEX_DTYPE)
    index["json_offset"], index["json_bytes"] = 10000, 240
    assert np.array_equal(read_index(index_bytes(index), SHARD), index)
    for broken in (b"", b"x", index_bytes(index)[:-1], index_bytes(index)[:20]):
        with pytest.raises(InputError, match="not an index"):
            read_index(broken, SHARD)
    with pytest.raises(InputError, match="not an index"):
        read_index(index_bytes(np.zeros(2)), SHARD)
    zeros = b"0" * 12
    huge = index_bytes(index).replace(b"(2,), }" + b" " * 12, b"(2" + zeros + b",), }")
    with pytest.raises(InputError, match=r"not an index.*Unable to allocate"):
        read_index(huge, SHARD)
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}, {}]), allow_pickle=True)  # a pickle must not be run
    with pytest.raises(InputError, match="not an index"):
        read_index(buffer.getvalue(), SHARD)
    with pytest.raises(InputError, match="does not fit"):
        read_index(index_bytes(index[:1]), SHARD)
    for offset in (10001, 2**64 - 240):  # past the end, also by way of an overflow
        index["json_offset"][1] = offset
        with pytest.raises(InputError, match="does not fit"):
            read_index(index_bytes(index), SHARD)
    assert read_index(index_bytes(index[:0]), replace(SHARD, samples=0)).size == 0
