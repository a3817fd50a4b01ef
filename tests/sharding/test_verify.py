"""Damage of every kind: ``verify`` must find each, and name its file and sample."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotimm.format.index import build_index, index_bytes, scan_tar
from autotimm.format.manifest import MANIFEST
from autotimm.format.manifest_file import read_manifest, write_manifest
from autotimm.sharding import cli
from autotimm.sharding.verify import Report, verify
from autotimm.streaming.shards import ShardSource
from autotimm.structures import InputError

SAMPLE = Path(__file__).parents[2] / "shards" / "sample"
TRAIN = "train-000000.tar"
with tarfile.open(SAMPLE / TRAIN) as _archive:
    KEYS = [name.removesuffix(".json") for name in _archive.getnames() if name.endswith(".json")]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A copy of the bundled shards: 8 + 4 images, written by the writer."""
    return Path(shutil.copytree(SAMPLE, tmp_path / "shards"))


@pytest.fixture(scope="session")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO photos in six shards."""
    folder = tmp_path_factory.mktemp("real")
    cli.shard(shared_data / "coco_mini", folder, samples_per_shard=30)
    return folder


def flip(path: Path, position: int, bits: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= bits
    path.write_bytes(data)


def edit(folder: Path, change: Callable[[list[tuple[str, bytes]]], object]) -> Report:
    """Changes members of the training shard, and updates index and manifest accordingly.

    Only the content of the members can reveal the change.
    """
    path = folder / TRAIN
    with tarfile.open(path) as archive:
        members = [(m.name, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]
    change(members)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return reseal(folder, index_bytes(build_index(path.read_bytes())))


def reseal(folder: Path, index: bytes) -> Report:
    """Writes an index for the training shard, and updates the manifest accordingly."""
    data = (folder / TRAIN).read_bytes()
    manifest = read_manifest(folder)
    split = manifest.splits["train"]
    (folder / split.shards[0].index).write_bytes(index)
    split.shards[0] = replace(
        split.shards[0],
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        index_sha256=hashlib.sha256(index).hexdigest(),
        index_size=len(index),
    )
    write_manifest(folder / MANIFEST, manifest)
    return verify(folder)


def edit_record(
    folder: Path, change: Callable[[dict[str, Any]], object], sample: int = 2
) -> Report:
    def edited(members: list[tuple[str, bytes]]) -> None:
        name, data = members[2 * sample + 1]
        record = json.loads(data)
        change(record)
        members[2 * sample + 1] = name, json.dumps(record).encode()

    return edit(folder, edited)


def test_sound_folders_have_no_fault(shards: Path, real: Path) -> None:
    report = verify(shards)
    assert report == Report(2, 12, 55, 1, 143360, [])
    done: list[tuple[int, int]] = []
    report = verify(real, progress=lambda *count: done.append(count))
    assert (report.shards, report.images, report.instances, report.crowd) == (6, 159, 1363, 13)
    assert report.bytes == sum(p.stat().st_size for p in real.glob("*.tar")) and not report.faults
    assert done == [(n, 159) for n in range(1, 160)]
    assert verify(real, workers=2) == report


@pytest.mark.parametrize("name", [TRAIN, "train-000000.idx.npy"])
def test_a_flipped_byte_is_found_100_times_of_100(shards: Path, name: str) -> None:
    rng = random.Random(7)
    sound = (shards / name).read_bytes()
    found = 0
    for _ in range(100):
        flip(shards / name, rng.randrange(len(sound)), rng.randrange(1, 256))
        found += any(name in fault for fault in verify(shards).faults)
        (shards / name).write_bytes(sound)
    assert found == 100 and not verify(shards).faults


def test_100_of_100_flipped_bits_of_a_manifest_are_found(shards: Path) -> None:
    """Names, problems and the version of the writer are in the manifest only."""
    rng = random.Random(8)
    sound = (shards / MANIFEST).read_bytes()
    found = 0
    for _ in range(100):
        flip(shards / MANIFEST, rng.randrange(len(sound)), 1 << rng.randrange(8))
        found += bool(verify(shards).faults)
        (shards / MANIFEST).write_bytes(sound)
    assert found == 100 and not verify(shards).faults


def test_every_cut_at_a_block_is_found(shards: Path) -> None:
    path, other = shards / TRAIN, shards / "val-000000.tar"
    other_size, sound = other.stat().st_size, path.read_bytes()
    end = -(-len(sound.rstrip(b"\0")) // 512) * 512 + 1024  # the end of tar's end-of-archive blocks
    for cut in range(0, len(sound), 512):
        path.write_bytes(sound[:cut])
        assert any(f.startswith(f"{TRAIN}: has {cut:,} bytes") for f in verify(shards).faults)
        with pytest.raises(InputError, match=f"{TRAIN}: has {cut} bytes"):
            ShardSource(str(shards), "train")
        if cut < end:  # without a manifest; only zeros follow the end
            with pytest.raises(InputError, match="cut off"):
                build_index(sound[:cut])
        else:
            assert len(build_index(sound[:cut])) == 8
    assert other.stat().st_size == other_size


def test_a_cut_names_the_samples_that_are_lost(shards: Path) -> None:
    path = shards / TRAIN
    path.write_bytes(path.read_bytes()[:60_000])
    faults = verify(shards).faults
    lost = [f for f in faults if f.endswith("not in the file, which is cut off")]
    assert len(lost) == sum(
        row["json_offset"] + row["json_bytes"] > 60_000
        for row in build_index((SAMPLE / TRAIN).read_bytes())
    )
    assert f"{TRAIN}: the shard is cut off" in "\n".join(faults)


def test_a_flip_names_the_sample(shards: Path) -> None:
    rows = build_index((SAMPLE / TRAIN).read_bytes())
    flip(shards / TRAIN, int(rows["image_offset"][3]) + 100, 4)
    flip(shards / TRAIN, int(rows["json_offset"][5]) + 100, 4)
    sha, image, text = verify(shards).faults
    assert "sha256 differs" in sha
    assert image.startswith(f"{TRAIN}: sample 3 '{KEYS[3]}': the image's bytes have changed")
    assert text.startswith(f"{TRAIN}: sample 5 '{KEYS[5]}': the record's bytes have changed")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        bytes(10240),
        b"PK\x03\x04" + bytes(9000),
        b"\x93NUMPY\x01\x00\xff\xff{",
        pickle.dumps({"a": 1}),
        random.Random(1).randbytes(50_000),
    ],
    ids=["empty", "a byte", "zeros", "zip", "header", "pickle", "noise"],
)
def test_garbage_is_a_fault(shards: Path, content: bytes) -> None:
    for name in (TRAIN, "train-000000.idx.npy"):
        (shards / name).write_bytes(content)
        assert any(name in fault for fault in verify(shards).faults)
        shutil.copy(SAMPLE / name, shards / name)
    assert "train-000000" in reseal(shards, content).faults[0], "with a manifest that agrees"
    (shards / MANIFEST).write_bytes(content)
    assert "not a manifest" in verify(shards).faults[0]


def test_what_is_missing_or_no_file(shards: Path) -> None:
    index = "val-000000.idx.npy"
    (shards / TRAIN).unlink()
    (shards / index).unlink()
    missing = [
        f"{TRAIN}: {MANIFEST} names it, but there is no such file",
        f"val-000000.tar: its index {index} is not there",
    ]
    assert verify(shards).faults == missing
    (shards / TRAIN).mkdir()
    (shards / index).symlink_to("nowhere")
    assert verify(shards).faults == missing
    (shards / TRAIN).rmdir()
    os.mkfifo(shards / TRAIN)  # open() would block for ever
    assert verify(shards).faults == missing


def test_a_name_that_no_file_can_have_is_a_fault(shards: Path) -> None:
    manifest = read_manifest(shards)
    split = manifest.splits["train"]
    split.shards[0] = replace(split.shards[0], name="n" * 300 + ".tar", index="i" * 300)
    write_manifest(shards / MANIFEST, manifest)
    faults = verify(shards).faults
    assert len([f for f in faults if f.endswith("cannot be read: File name too long")]) == 2


def test_strangers_are_named(shards: Path) -> None:
    for name in ("old-000000.tar", "train-000001.idx.npy", "README.md", ".hidden.tar"):
        (shards / name).write_bytes(b"")
    assert verify(shards).faults == [
        f"old-000000.tar: {MANIFEST} does not name it",
        f"train-000001.idx.npy: {MANIFEST} does not name it",
    ]


def test_swapped_shards(shards: Path) -> None:
    (shards / TRAIN).rename(shards / "x")
    (shards / "val-000000.tar").rename(shards / TRAIN)
    (shards / "x").rename(shards / "val-000000.tar")
    faults = verify(shards).faults
    assert f"{TRAIN}: has 40,960 bytes, {MANIFEST} says 102,400" in faults
    assert f"{TRAIN}: has 4 samples, {MANIFEST} says 8" in faults
    assert f"val-000000.tar: has 8 samples, {MANIFEST} says 4" in faults


def test_an_index_that_lies(shards: Path) -> None:
    rows = build_index((shards / TRAIN).read_bytes())
    for name, message in [
        ("image_offset", "its samples lie elsewhere"),
        ("json_bytes", "its samples lie elsewhere"),
        ("width", f"sample 4 '{KEYS[4]}': the index has the size or image id of another"),
        ("image_id", f"sample 4 '{KEYS[4]}': the index has the size or image id of another"),
        ("image_xxh3", f"sample 4 '{KEYS[4]}': the image's bytes have changed"),
        ("json_xxh3", f"sample 4 '{KEYS[4]}': the record's bytes have changed"),
    ]:
        changed = rows.copy()
        changed[name][4] -= 1
        assert any(message in fault for fault in reseal(shards, index_bytes(changed)).faults), name
    assert reseal(shards, index_bytes(rows[::-1])).faults[0].endswith("lie elsewhere")
    assert "does not fit" in reseal(shards, index_bytes(rows[:-1])).faults[0]
    assert not reseal(shards, index_bytes(rows)).faults
    pairs = scan_tar((shards / TRAIN).read_bytes())[1]
    assert not reseal(shards, index_bytes(rows, pairs)).faults
    pairs["category_id"][pairs["sample"] == 4] = 99
    (fault,) = reseal(shards, index_bytes(rows, pairs)).faults
    assert f"sample 4 '{KEYS[4]}': the index has the categories of another" in fault


def test_records_that_are_sound_json_but_wrong(shards: Path) -> None:
    def annotation(**changes: Any) -> Callable[[dict[str, Any]], object]:
        return lambda record: record["annotations"][-1].update(changes)

    with tarfile.open(SAMPLE / TRAIN) as archive:
        sound = json.loads(archive.extractfile(f"{KEYS[2]}.json").read())  # type: ignore[union-attr]
    last = sound["annotations"][-1]
    size = last["segmentation"]["size"]
    moved = [[x + 3 for x in polygon] for polygon in last["polygons"]]
    who = f"{TRAIN}: sample 2 '{KEYS[2]}'"
    cases = [
        (annotation(category_id=99), f"annotation {last['id']}: {MANIFEST} has no category 99"),
        (annotation(polygons=moved), f"annotation {last['id']}: its polygons are not its mask"),
        (
            annotation(segmentation={"size": size, "counts": "10"}),
            f"annotation {last['id']}: RLE counts do not fill the image",
        ),
        (annotation(segmentation={"size": size, "counts": "~"}), "RLE counts are broken"),
        (annotation(segmentation={"size": [1, 1], "counts": "1"}), "of the image's size"),
        (annotation(bbox=[1, 2, 3]), "its record is damaged"),
        (annotation(id=2**64 - 1), "its record is damaged: 18446744073709551615"),
        (lambda record: record.pop("annotations"), "its record lacks 'annotations'"),
        (lambda record: record.update(width=record["width"] + 1), "of the image's size"),
    ]
    for change, message in cases:
        shutil.copytree(SAMPLE, shards, dirs_exist_ok=True)
        faults = edit_record(shards, change).faults
        assert any(f.startswith(who) and message in f for f in faults), (message, faults)


def test_samples_that_are_mixed_up(shards: Path) -> None:
    def other_record(members: list[tuple[str, bytes]]) -> None:
        members[3] = members[3][0], members[5][1]

    faults = edit(shards, other_record).faults
    assert any("split 'train': image id" in f and "more than once" in f for f in faults)
    assert any("split 'train': annotation id" in f for f in faults)

    def other_image(members: list[tuple[str, bytes]]) -> None:
        members[2] = members[2][0], members[2][1][:5000]

    shutil.copytree(SAMPLE, shards, dirs_exist_ok=True)
    (fault,) = edit(shards, other_image).faults
    assert fault.startswith(f"{TRAIN}: sample 1 '{KEYS[1]}': the image cannot be decoded")


def test_wrong_counts(shards: Path) -> None:
    manifest = read_manifest(shards)
    manifest.splits["train"] = replace(manifest.splits["train"], instances=41, crowd=0)
    write_manifest(shards / MANIFEST, manifest)
    assert verify(shards).faults == [
        f"{MANIFEST}: split 'train' has 40 instances, not 41",
        f"{MANIFEST}: split 'train' has 1 crowd, not 0",
    ]


def test_many_faults_are_counted_not_listed(shards: Path) -> None:
    faults = edit(
        shards,
        lambda members: members.__setitem__(
            slice(None), [(n, b"x" if n.endswith("jpg") else d) for n, d in members]
        ),
    ).faults
    assert faults and all("not an image" in f or "decoded" in f for f in faults)

    def unknown(record: dict[str, Any]) -> None:
        record["annotations"] = [
            a | {"category_id": 50, "id": n}
            for n, a in enumerate(record["annotations"] * 9, start=1000)
        ]

    shutil.copytree(SAMPLE, shards, dirs_exist_ok=True)
    report = edit_record(shards, unknown)
    ours = [f for f in report.faults if f.startswith(TRAIN)]
    assert len(ours) == 21 and ours[-1].startswith(f"{TRAIN}: and ")


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        verify(tmp_path / "none")
    with pytest.raises(InputError, match=r"no manifest\.json"):
        verify(tmp_path)


def test_a_killed_worker_is_no_verdict(real: Path) -> None:
    def kill(done: int, total: int) -> None:
        for process in multiprocessing.active_children():
            os.kill(process.pid or 0, signal.SIGKILL)

    with pytest.raises(ChildProcessError, match="a worker was killed"):
        verify(real, workers=2, progress=kill)


def test_an_exception_of_the_caller_ends_the_workers(real: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(real, workers=2, progress=interrupt)
    assert not multiprocessing.active_children()


def test_faults_are_printable(shards: Path) -> None:
    def rename(members: list[tuple[str, bytes]]) -> None:
        members[0] = "a\n\x1b[2J.png", b"x"
        members[1] = "a\n\x1b[2J.json", members[1][1]

    (fault,) = edit(shards, rename).faults
    assert fault.isprintable() and "sample 0 'a??[2J'" in fault


def test_noise_in_every_place_never_crashes(shards: Path) -> None:
    rng = np.random.default_rng(3)
    names = [TRAIN, "train-000000.idx.npy", MANIFEST]
    for turn in range(60):
        name = names[turn % 3]
        data = bytearray((SAMPLE / name).read_bytes())
        start = int(rng.integers(len(data)))
        noise = rng.bytes(int(rng.integers(1, 2000)))
        data[start : start + int(rng.integers(0, 2000))] = noise
        (shards / name).write_bytes(data)
        if name == MANIFEST:
            assert verify(shards).faults
        else:
            manifest = read_manifest(shards)
            assert reseal(shards, (shards / "train-000000.idx.npy").read_bytes()).faults
            write_manifest(shards / MANIFEST, manifest)
        shutil.copy(SAMPLE / name, shards / name)
