"""Annotation files that are packed."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from coco_folder import write

from autotimm.coco import index as coco
from autotimm.coco import packed
from autotimm.structures import InputError

FILE = "annotations/instances_train.json"


def zipped(content: bytes, names: tuple[str, ...] = ("instances_train.json",)) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return file.getvalue()


def load(root: Path, pack: Callable[[bytes], bytes], name: str = FILE) -> coco.CocoIndex:
    plain = (write(root) / FILE).read_bytes()
    (root / FILE).unlink()
    (root / name).write_bytes(pack(plain))
    return coco.load(root / name, root / "train")


PACKED = {
    "gzip": gzip.compress,
    "gzip in parts": lambda content: gzip.compress(content[:50]) + gzip.compress(content[50:]),
    "UTF-16 in gzip": lambda content: gzip.compress(content.decode().encode("utf-16")),
    "mark in gzip": lambda content: gzip.compress(b"\xef\xbb\xbf" + content),
    "zip": zipped,
    "zip of macOS": lambda content: zipped(content, ("a/b.json", "__MACOSX/a/._b.json", "a/.c")),
    "zip beside text": lambda content: zipped(content, ("b.JSON", "readme.txt")),
    "zip of one other file": lambda content: zipped(content, ("annotations",)),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_files_are_read_and_told(tmp_path: Path, name: str) -> None:
    index = load(tmp_path / "packed", PACKED[name])
    plain = load(tmp_path / "plain", bytes)
    assert index.record(0) == plain.record(0)
    how = "gzip" if "gzip" in name else "zip"
    assert index.problems.counts == {f"annotation file is packed by {how} (unpacked)": 1}


@pytest.mark.parametrize(("end", "pack"), [("json.gz", gzip.compress), ("json.zip", zipped)])
def test_a_name_that_says_so_is_nothing_odd(
    tmp_path: Path, end: str, pack: Callable[[bytes], bytes]
) -> None:
    index = load(tmp_path, pack, f"annotations/instances_train.{end}")
    assert len(index) == 1
    assert not index.problems.counts


REFUSED = {
    "bzip2": (bz2.compress, "is packed by bzip2, which is not read: unpack it first"),
    "xz": (lzma.compress, "is packed by xz, which is not read: unpack it first"),
    "cut": (lambda content: gzip.compress(content)[:-20], "is gzip, but damaged"),
    "flipped": (lambda content: gzip.compress(content)[:10] + b"\xff" * 99, "is gzip, but damaged"),
    "cut zip": (lambda content: zipped(content)[:-20], "is zip, but damaged"),
    "two": (lambda content: zipped(content, ("a.json", "b.json")), "2 JSON files (a.json, b.json)"),
    "none": (lambda _: zipped(b"", ()), "is zip with 0 JSON files (none)"),
    "no JSON": (lambda _: gzip.compress(b"text"), "not a JSON file"),
    "bomb": (lambda _: gzip.compress(b" " * (2**26 + 1)), "more than 67,108,864 bytes"),
    "zip bomb": (lambda _: zipped(b" " * (2**26 + 1)), "more than 67,108,864 bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_unpacked_is_refused_in_a_line(tmp_path: Path, name: str) -> None:
    pack, message = REFUSED[name]
    with pytest.raises(InputError) as error:
        load(tmp_path, pack)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / FILE}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pack", [gzip.compress, zipped])
def test_no_more_is_unpacked_than_the_limit(
    monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(packed, "_ALWAYS", 1000)
    monkeypatch.setattr(packed, "_RATIO", 1)
    data = pack(b" " * 10**8)
    how = packed.kind(data[:8])
    assert how is not None
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="unpacks to more than"):
            packed.unpacked(data, how, Path("x.json"))
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_a_zip_with_a_password_is_refused_in_a_line(tmp_path: Path) -> None:
    def locked(content: bytes) -> bytes:
        data = bytearray(zipped(content))
        for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            data[data.index(magic) + flags] |= 1
        return bytes(data)

    with pytest.raises(InputError, match="unpack it first"):
        load(tmp_path, locked)


def test_a_packed_index_is_pickled_with_its_text(tmp_path: Path) -> None:
    import pickle

    index = load(tmp_path, gzip.compress)
    again = pickle.loads(pickle.dumps(index))  # noqa: S301 (our own)
    assert again.record(0) == index.record(0)
    assert json.loads(json.dumps(again.record(0))) == index.record(0)


def test_a_zip_whose_directory_points_nowhere_is_damaged(tmp_path: Path) -> None:
    def damaged(content: bytes) -> bytes:
        data = bytearray(zipped(content))
        end = data.rindex(b"PK\x05\x06")
        data[end + 16 : end + 20] = b"\xff\xff\xff\x7f"  # where the directory begins
        return bytes(data)

    with pytest.raises(InputError, match=r"x\.json\.zip: is zip, but damaged"):
        load(tmp_path, damaged, FILE.replace("instances_train", "x") + ".zip")
