"""Files are known by their first bytes: those that PIL, zipfile and tarfile write are the truth."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile

import pytest
from PIL import Image

from autotimm.images.kinds import HEAD, kind_of


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
    ],
)
def test_other_files_have_a_name(head: bytes, name: str) -> None:
    found = kind_of(head[:HEAD])
    assert found.name == name
    assert (found.use == "video") == (name == "MP4 or MOV")
    assert found.use != "image"


def test_a_cameras_raw_file_is_known_by_its_extension() -> None:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "TIFF")
    assert kind_of(content.getvalue(), "a/b.NEF").name == "camera raw"
    assert kind_of(content.getvalue(), "a/b.tif").name == "TIFF"
