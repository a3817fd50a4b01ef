"""Files are known by their first bytes: those that PIL, zipfile and tarfile write are the truth."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_depth import tiff

from autotimm.images.decode import decode_image, deep_pixels
from autotimm.images.inspect import inspect
from autotimm.images.kinds import HEAD, kind_of
from autotimm.inference.sources import decoded
from autotimm.structures import InputError


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP"])
def test_images_are_what_pil_reads(kind: str, mode: str) -> None:
    if (kind, mode) in {("JPEG", "P"), ("JPEG", "1"), ("PPM", "P"), ("WEBP", "1")}:
        pytest.skip("PIL writes none")
    content = io.BytesIO()
    Image.new(mode, (64, 48)).save(content, kind)
    found = kind_of(content.getvalue()[:HEAD])
    assert (found.name.upper(), found.use) == (kind, "image")
    assert found.name.upper() in Image.OPEN


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a", "b")
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return content.getvalue()


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (zipped(), "ZIP"),
        (tarred(), "tar"),
        (gzip.compress(b"hello", mtime=0), "gzip"),
        (b"", "empty file"),
        (b"BMW and Python", "text"),
        ("Gr\u00fc\u00dfe".encode(), "text"),
        (b'\xef\xbb\xbf {"images": []}', "JSON"),
        (b"<?xml version='1.0'?><svg>", "SVG"),
        (b"<html>", "XML or HTML"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"\0\0\0\x1cftypM4A ", "audio"),
        (b"\0\0\0\x1cftypqt  ", "MP4 or MOV"),
        (b"RIFF\0\0\0\0WAVE", "audio"),
        (b"II*\0\x10\0\0\0CR", "camera raw"),
        (bytes(range(256)), "unknown kind"),
        (b"\x5c\x01\0\0" + bytes(340) + b"n+1\0", "NIfTI"),
        (b"\x1c\x02\0\0n+2\0\r\n\x1a\n" + bytes(500), "NIfTI"),
        (bytes(128) + b"DICM" + bytes(300), "DICOM"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"8BPS\0\x01", "Photoshop file"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    ],
)
def test_other_files_have_a_name(head: bytes, name: str) -> None:
    found = kind_of(head[:HEAD])
    assert found.name == name
    assert (found.use == "video") == (name == "MP4 or MOV")
    assert found.use != "image"


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_every_reader_names_the_kind_and_the_way_out(name: str) -> None:
    """By content, whatever the file is called: shards, training, evaluation and prediction."""
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' width='64' height='48'/>"
    kinds = {
        "HEIC": b"\0\0\0\x18ftypheic" + bytes(400),
        "AVIF": b"\0\0\0\x1cftypavif" + bytes(400),
        "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(400),
        "JPEG XL": b"\xff\x0a" + bytes(400),
        "DICOM": bytes(128) + b"DICM" + bytes(400),
        "NIfTI": b"\x5c\x01\0\0" + bytes(340) + b"n+1\0" + bytes(99),
        "SVG": svg,
        "Photoshop file": b"8BPS\0\x01" + bytes(400),
        "camera raw": raw(),
        "TIFF of 3 channels of 32-bit floats": tiff(np.zeros((48, 64, 3), np.float32), 32, 3),
        "TIFF of 2 channels of 16-bit integers": tiff(np.zeros((48, 64, 2), np.uint16), 16, 1),
        "TIFF of 2 channels of 32-bit floats": tiff(np.zeros((48, 64, 2), np.float32), 32, 3),
        "TIFF of one channel of 64-bit complex": tiff(np.zeros((48, 64), np.complex64), 64, 6),
    }
    for kind, content in kinds.items():
        readers = (
            lambda content=content: inspect(content),
            lambda content=content: decode_image(content, 64, 48),
            lambda content=content: deep_pixels(content),
            lambda content=content: decoded(content, name),
        )
        for read in readers:
            with pytest.raises((ValueError, InputError)) as error:
                read()
            said = str(error.value)
            assert kind in said and ("first" in said or "save one or three" in said), said


def test_decoders_print_nothing_of_their_own(tmp_path: Path) -> None:
    """PIL logs of what it does not open, OpenCV of tags that it does not know: once an image."""
    two = tiff(np.zeros((48, 64, 2), np.uint16), 16, 1)
    odd = tiff(np.ones((48, 64)), 64, 3, (65000, 3, 7))
    (tmp_path / "two.tif").write_bytes(two)
    (tmp_path / "odd.tif").write_bytes(odd)
    code = (
        "import sys\nfrom pathlib import Path\nfrom autotimm.images.opening import open_image\n"
        "print(open_image(Path('odd.tif').read_bytes()).size)\n"
        "try:\n    open_image(Path('two.tif').read_bytes())\n"
        "except ValueError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    size, said = done.stdout.splitlines()
    assert size == "(64, 48)" and said.startswith("file is a TIFF of 2 channels of 16-bit integers")
    assert done.stderr == ""


def raw() -> bytes:
    """A TIFF that begins with a thumbnail, as DNG and NEF do."""
    content = io.BytesIO()
    tags: Any = {254: 1, 50706: b"\1\4\0\0"}
    Image.new("RGB", (16, 12)).save(content, "TIFF", tiffinfo=tags)
    return content.getvalue()


def test_a_cameras_raw_file_is_known_by_its_extension() -> None:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "TIFF")
    assert kind_of(content.getvalue(), "a/b.NEF").name == "camera raw"
    assert kind_of(content.getvalue(), "a/b.tif").name == "TIFF"


@pytest.mark.parametrize(
    "tags", [{254: (2, b"1\0\0\0")}, {277: (2, b"1\0\0\0")}, {258: (12, b"\0\0\0\0")}]
)
def test_tags_of_another_type_than_theirs_are_no_fault_of_the_program(
    tags: dict[int, tuple[int, bytes]],
) -> None:
    plain = {256: (4, 64), 257: (4, 48), 258: (3, 8), 262: (3, 1), 277: (3, 9), 273: (4, 200)}
    entries = {tag: (kind, value.to_bytes(4, "little")) for tag, (kind, value) in plain.items()}
    body = b"".join(
        struct.pack("<HHI", tag, kind, 1) + value
        for tag, (kind, value) in sorted((entries | tags).items())
    )
    data = b"II\x2a\0\x08\0\0\0" + struct.pack("<H", len(entries | tags)) + body + bytes(4000)
    with pytest.raises(ValueError, match=r"image|file"):
        inspect(data)


def test_a_big_tiff_whose_directory_lies_beyond_any_file() -> None:
    with pytest.raises(ValueError, match=r"image cannot be opened|file is not an image"):
        inspect(b"II\x2b\0\x08\0\0\0" + b"\xff" * 8 + bytes(300))
