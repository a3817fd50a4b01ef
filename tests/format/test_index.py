"""The index of a shard: files, and the tar scanner against tarfile."""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import xxhash

from autotimm.format.index import INDEX_DTYPE, build_index, index_bytes, read_index
from autotimm.format.manifest import Shard
from autotimm.structures import InputError

SHARD = Shard("train-000000.tar", 2, 10240, "0" * 64, "train-000000.idx.npy", "f" * 64)
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
    made[2], made[3] = made[3], made[2]  # a sample's members may come in any order
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
        start, size = known[f"folder/key{number}.jpg"]
        assert row["image_xxh3"] == xxhash.xxh3_64(data[start : start + size]).intdigest()


def test_a_cut_shard_is_noticed_wherever_it_is_cut() -> None:
    data = tar(members())
    end = -(-len(data.rstrip(b"\0")) // 512) * 512 + 1024  # two empty blocks end a tar
    for cut in range(0, end, 256):
        with pytest.raises(InputError, match="cut off"):
            build_index(data[:cut])
    assert len(build_index(data[:end])) == 6, "what fills up the last record says nothing"


def test_a_lost_stretch_that_reads_as_zeros_is_not_taken_for_the_end() -> None:
    data = tar(members())
    second = data.index(b"folder/key1.json")
    hole = data[:second] + bytes(4096) + data[second + 4096 :]
    with pytest.raises(InputError, match=f"damaged at byte {second}"):
        build_index(hole)


def test_a_flipped_header_byte_is_noticed() -> None:
    data = bytearray(tar(members()))
    for position in (0, 124, 130, 148, 156, 257):
        flipped = data.copy()
        flipped[position] ^= 1
        with pytest.raises(InputError, match="shard"):
            build_index(bytes(flipped))


@pytest.mark.parametrize("size", [b"-0000001000", b"0000_001000", b"00000001 00"])
def test_sizes_that_are_no_octal_numbers_are_damage(size: bytes) -> None:
    data = bytearray(tar(members()))
    data[124:136] = size + b"\0"
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    with pytest.raises(InputError, match="damaged at byte 0"):
        build_index(bytes(data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("a.jpg", b"1"), ("b.jpg", b"2")], "'a' of the shard is not one image and one .json"),
        ([("a.jpg", b"1"), ("a.png", b"2")], "not one image and one .json"),
        ([("a.jpg", b"1")], "not one image and one .json"),
        ([("a.jpg", b"1"), ("a.json", b"{}")], "a.json of the shard is not the record"),
        ([("a.jpg", b"1"), ("a.json", b"[")], "a.json of the shard is not the record"),
        *(
            ([("a.jpg", b"1"), ("a.json", json.dumps(RECORD | change).encode())], "not the record")
            for change in ({"width": 2**32}, {"height": -1}, {"image_id": 2**63}, {"width": 1.5})
        ),
        ([("n" * 150 + ".jpg", b"1")], "not plain ustar"),
    ],
)
def test_what_is_no_shard_is_refused(changes: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_index(tar(changes, tarfile.PAX_FORMAT))


def test_index_files() -> None:
    index = np.zeros(2, INDEX_DTYPE)
    index["json_offset"], index["json_bytes"] = 10000, 240
    assert np.array_equal(np.load(io.BytesIO(index_bytes(index))), index)
    other = io.BytesIO()  # as another version of NumPy may write it, with another header
    np.lib.format.write_array(other, index, version=(2, 0))
    assert np.array_equal(read_index(other.getvalue(), SHARD), index)
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
