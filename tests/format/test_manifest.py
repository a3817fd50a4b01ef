"""The manifest: round trips and damage."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autotimm.coco.index import Category
from autotimm.files.atomic import whole_file
from autotimm.format.manifest import Manifest, Shard, SplitInfo
from autotimm.format.manifest_file import manifest_bytes, read_manifest, write_manifest
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
    assert content["format"] == "autotimm-shards" and content["version"] == 4
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


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    made_from = {"options": {"limit": None, "shuffle": 2**64 - 1}, "splits": {"train": {"x": "é"}}}
    write_manifest(tmp_path / "manifest.json", replace(MANIFEST, source=made_from))
    sound = (tmp_path / "manifest.json").read_bytes()
    read_manifest(sound)
    for at in range(len(sound)):
        for bit in range(8):
            data = bytearray(sound)
            data[at] ^= 1 << bit
            with pytest.raises(InputError, match=r"manifest\.json: "):
                read_manifest(bytes(data))


def test_an_edited_manifest_says_how_to_go_on(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.json", MANIFEST)
    content = json.loads((tmp_path / "manifest.json").read_text())
    sha256 = content.pop("sha256")
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert sha256 == hashlib.sha256(plain.encode()).hexdigest()
    assert read_manifest(json.dumps({"sha256": sha256} | content).encode()) == MANIFEST
    text = (tmp_path / "manifest.json").read_text().replace('"b"', '"bird"')
    with pytest.raises(InputError, match=r"^manifest\.json: was changed or damaged .*; if the cha"):
        read_manifest(text.encode())
    lines = [line for line in text.splitlines() if not line.startswith('  "sha256":')]
    assert read_manifest("\n".join(lines).encode()).categories[1].name == "bird"
    with pytest.raises(InputError, match='"sha257" is nothing that a manifest has'):
        read_manifest(json.dumps({"sha257": sha256} | content).encode())


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
        "version": 2,
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
        ("version", 1),
        ("version", None),
        ("categories", []),
        ("categories", {}),
        ("categories.0", {"id": "x", "name": "a", "supercategory": ""}),
        ("categories.0.name", ""),
        ("splits", []),
        ("splits", {}),
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


@pytest.mark.parametrize(
    ("keys", "value", "reason"),
    [
        ("splits", [], "its splits is not an object"),
        ("splits", 0, "its splits is not an object"),
        ("splits.train", [], "[] is not an object"),
        ("splits.train.shards", {}, "its shards is not a list"),
        ("splits.train.problems", [], "its problems is not an object"),
        (f"{SHARD_AT}.index", "x", "its index is not an object"),
        (SHARD_AT, False, "false is not an object"),
        ("categories", "abc", "its categories is not a list"),
        ("categories.0", ["id"], '["id"] is not an object'),
        ("categories.0.name", True, "true is not a name"),
        ("source", [], "its source is not an object"),
        ("splits.train.images", None, "'images' is missing"),
        ("splits.train.images", "9" * 999, f'"{"9" * 79}... is not a count or an id'),
    ],
)
def test_what_is_wrong_is_said_with_a_way_out(keys: str, value: object, reason: str) -> None:
    again = "run autotimm-shard again, or copy it again"
    with pytest.raises(InputError) as error:
        read_manifest(changed(keys, value), "https://h/manifest.json")
    start = "https://h/manifest.json: not a manifest of shards: "
    assert str(error.value) == f"{start}{reason}: {again}"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[]", "[] is not an object"),
        (b"null", "null is not an object"),
        (text()[:-1], "it is not JSON, or cut off"),
        (text().replace(b'"categories": [', b'"categories": null, "source": ['),
         "its categories is not a list"),
        (b'{"format": "autotimm-shards", "version": 2, "sha256": "x", "source": '
         + b"[" * 500 + b"]" * 500 + b"}", "it is not laid out as one"),
    ],
)  # fmt: skip
def test_no_word_of_pythons_is_shown(content: bytes, reason: str) -> None:
    with pytest.raises(InputError) as error:
        read_manifest(content)
    assert str(error.value).endswith(f": {reason}: run autotimm-shard again, or copy it again")


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"manifest\.json: cannot be read"):
        read_manifest(tmp_path / "manifest.json")


@pytest.mark.parametrize("kind", [Path.mkdir, os.mkfifo])
def test_a_manifest_that_is_no_file_is_refused(kind: Callable, tmp_path: Path) -> None:
    kind(tmp_path / "manifest.json")
    for source in (tmp_path, tmp_path / "manifest.json"):
        with pytest.raises(InputError, match=r"manifest\.json: cannot be read: .*: run autotimm"):
            read_manifest(source)


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


def test_a_write_that_the_system_cuts_short_is_an_error(tmp_path: Path) -> None:
    """As a full disk does: the first write() takes what there is room for, and says how much."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (900, 90_000):  # less and more than a buffer
        for sync in (True, False):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size * 2 // 3, before[1]))
            try:
                with (
                    pytest.raises(OSError, match="File too large"),
                    whole_file(tmp_path / "file", sync) as file,
                ):
                    file.write(bytes(size))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert not list(tmp_path.iterdir())


def test_the_umask_says_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for mask in (0o022, 0o077, 0o002):
            os.umask(mask)
            with whole_file(tmp_path / "file"):
                pass
            assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask
    finally:
        os.umask(before)


def test_data_reaches_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    fsync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(os.fstat(fd).st_size), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (order.append("rename"), rename(a, b)))
    with whole_file(tmp_path / "file") as file:
        file.write(b"data")
    assert order == [4, "rename"]


def test_a_pixel_range_that_is_none_names_the_file() -> None:
    content = json.loads(manifest_bytes(MANIFEST))
    del content["sha256"]
    content["pixel_range"] = [5, 1]
    with pytest.raises(InputError, match=r"^s/manifest\.json: its pixel_range is \[5, 1\]"):
        read_manifest(json.dumps(content).encode(), "s/manifest.json")


def test_an_id_of_more_than_63_bits_is_refused() -> None:
    """Neither an index nor a tensor holds one."""
    content = json.loads(manifest_bytes(MANIFEST))
    del content["sha256"]
    content["categories"][0]["id"] = 2**63
    with pytest.raises(InputError, match="9223372036854775808 is not a count or an id"):
        read_manifest(json.dumps(content).encode())
