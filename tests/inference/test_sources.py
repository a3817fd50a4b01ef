"""Images from wherever users have them: words, folders, URLs, PIL, arrays; every kind of file."""

from __future__ import annotations

import io
import os
import re
import socket
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_folder import picture
from PIL import Image, ImageOps

import autotimm
from autotimm.inference.ahead import read_ahead
from autotimm.inference.sources import find, pixels_of
from autotimm.inference.write import is_output
from autotimm.structures import InputError


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> autotimm.ObjectDetector:
    return autotimm.load(checkpoint)


def test_words_mean_files_folders_patterns_and_urls(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "below/c.webp", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    told = [tmp_path / "a.JPG", tmp_path / "b.png", tmp_path / "below" / "c.webp"]
    assert find([str(tmp_path)]) == [str(path) for path in told]
    assert find([f"{tmp_path}/*"]) == [str(path) for path in told[:2]]
    assert find([f"{tmp_path}/**/*.webp"]) == [str(told[2])]
    assert find([tmp_path.as_uri()]) == [str(path) for path in told]
    twice = [str(told[1]), str(tmp_path), "http://host/x.jpg?s=1"]
    assert find(twice) == [str(told[1]), str(told[0]), str(told[2]), "http://host/x.jpg?s=1"]
    nothing = [f"{tmp_path}/*.gif", str(tmp_path / "empty")]
    (tmp_path / "empty").mkdir()
    assert find(nothing) == nothing  # who opens them says so
    for word in nothing:
        with pytest.raises(InputError, match=rf"^{re.escape(word)}: no image there"):
            pixels_of(word)
    (tmp_path / "a*b.png").write_bytes(picture(kind="PNG"))
    assert pixels_of(tmp_path / "a*b.png").shape == (48, 64, 3)
    with pytest.raises(InputError, match=r"^ftp://host/\*.jpg: ftp URLs are not read"):
        find(["ftp://host/*.jpg"])


def test_what_is_no_file_is_counted_and_never_opened(tmp_path: Path) -> None:
    """Pipes, sockets, links and folders called as images are."""
    folder = tmp_path / "a"
    (folder / "sub.jpg").mkdir(parents=True)
    (folder / "good.png").write_bytes(picture(kind="PNG"))
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket.jpg"))
    (folder / "lost.jpg").symlink_to("nothing.jpg")
    (folder / "lost").symlink_to("nothing")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    for words, folders in (([str(folder)], 0), ([f"{folder}/*"], 1)):
        skipped: Counter[str] = Counter()
        found = find(words, skipped)
        names = ["good.png", "loop.jpg", "lost.jpg"]
        assert found == [str(folder / name) for name in names]
        assert skipped.pop("folder", 0) == folders
        assert skipped == {"pipe": 1, "socket": 1, "link to nothing": 1, "link to a folder": 1}
    for name in ("lost.jpg", "loop.jpg", "pipe.jpg", "socket.jpg", "sub.jpg"):
        with pytest.raises(InputError, match=rf"{name}: (cannot be read|is no regular|no image)"):
            pixels_of(folder / name)


def test_a_folders_images_are_found_by_their_content(tmp_path: Path) -> None:
    jpeg, png = picture(), picture(kind="PNG")
    gray = io.BytesIO()
    Image.new("L", (9, 9)).save(gray, "PPM")
    found = {
        "a.jfif": jpeg,
        "b.JPE": jpeg,
        "c.pgm": gray.getvalue(),
        "below/no_extension": png,
        "d.clip": b"\0\0\0\x18ftypisom\0\0\2\0",
        "e.jpg": b"\0\0\0\x18ftypheic\0\0\0\0",  # whose name lies: refused by name
    }
    other = {
        "notes.txt": b"hello",
        "more.md": b"# hello",
        "a.pdf": b"%PDF-1.7",
        "b.nef": b"II*\0\x08\0\0\0",
        "c.zip": b"PK\3\4",
        "empty": b"",
        "a.heic": found["e.jpg"],
    }
    hidden = {".DS_Store": b"\0\0\0\1Bud1", ".a.jpg": jpeg, ".thumbnails/b.jpg": jpeg}
    own = {
        "out/results.json": b"[]",
        "out/images.json": b"{}",
        "out/pictures/a.png": png,
        "out/videos/clip.mp4": found["d.clip"],
        "out/videos/clip.json": b"{}",
    }
    for name, content in (found | other | hidden | own).items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    skipped: Counter[str] = Counter()
    earlier_run = is_output(tmp_path / "another")
    expected = sorted(str(tmp_path / name) for name in found)
    assert find([str(tmp_path)], skipped, earlier_run) == expected
    kinds = {"text": 2, "PDF": 1, "camera raw": 1, "ZIP": 1, "empty file": 1, "HEIC": 1}
    assert skipped == kinds | {"hidden image": 1}
    with pytest.raises(InputError, match=r"e.jpg: is not an image \(HEIC\): save it as PNG first"):
        pixels_of(tmp_path / "e.jpg")
    with pytest.raises(InputError, match=r"d.clip: is a video \(MP4 or MOV\), not an image: auto"):
        pixels_of(tmp_path / "d.clip")
    assert pixels_of(tmp_path / "below" / "no_extension").shape == (48, 64, 3)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK", "I;16"])
def test_every_mode_of_picture_becomes_rgb(mode: str, tmp_path: Path) -> None:
    grey = np.tile(np.arange(0, 250, 10, dtype=np.uint8), (20, 1))
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(grey).convert("RGB").convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    picture.save(path)
    pixels = pixels_of(path)
    assert pixels.shape == (20, 25, 3)
    if mode in ("P", "1"):  # what colours are left, PIL says
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(path).convert("RGB")))
    else:
        np.testing.assert_allclose(pixels[..., 1], grey, atol=1)
    np.testing.assert_array_equal(pixels, pixels_of(Image.open(path)))


@pytest.mark.parametrize("which", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "TIFF of 16 bits, 0 is white"])
def test_a_pil_image_gives_what_its_file_gives(kind: str, which: int, tmp_path: Path) -> None:
    grey = (np.arange(20 * 30).reshape(20, 30) % 251).astype(np.uint8)
    path, deep = tmp_path / "it", "16 bits" in kind
    stored = Image.fromarray(grey.astype(np.uint16) * 257 if deep else grey)
    exif = Image.Exif()
    exif[0x0112] = which
    if deep:
        stored.save(path, "TIFF", tiffinfo={0x0112: which, 262: 0})
    else:
        stored.convert("RGB").save(path, kind, exif=exif)
    # Not by its path: Pillow 13 maps a plain TIFF of 16 bits with its sides exchanged.
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    if deep:
        shown = np.repeat(255 - (shown >> 8).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels_of(path, (0, 65535)), shown)
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        np.testing.assert_array_equal(pixels_of(image, (0, 65535)), shown)
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        image.load()  # where PIL turns a TIFF
        np.testing.assert_array_equal(pixels_of(image, (0, 65535)), shown)


def test_reading_in_threads_leaves_warnings_as_they_were(tmp_path: Path) -> None:
    for kind in ("PNG", "BMP", "TIFF"):
        Image.new("RGB", (300, 300)).save(tmp_path / f"it.{kind.lower()}")
    paths = [str(path) for path in sorted(tmp_path.iterdir())] * 100
    before = list(warnings.filters)
    for _ in read_ahead(paths):
        pass
    assert warnings.filters == before


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    upright = np.zeros((30, 50, 3), np.uint8)
    upright[:10, :10] = 255
    stored = Image.fromarray(np.rot90(upright, 1).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    stored.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.png"), upright)
    with Image.open(tmp_path / "a.png") as opened:
        np.testing.assert_array_equal(pixels_of(opened), upright)


def cut_off() -> bytes:
    """Half a JPEG."""
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)
    Image.fromarray(noise).save(content, "JPEG")
    return content.getvalue()[: content.tell() // 2]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "not ndarray of float32"),
        (np.zeros((4, 4, 2), np.uint8), r"uint8 \[4, 4, 2\]"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        ("none.jpg", "none.jpg: cannot be read: No such file"),
        (__file__, r"test_sources.py: is not an image \(text\)$"),
        ("gs://bucket/a.jpg", "gs://bucket/a.jpg: gs URLs are not read"),
        (Image.open(io.BytesIO(cut_off())), "a PIL image cannot be read: image file is truncated"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, message: str, model: Any) -> None:
    with pytest.raises(InputError, match=message):
        autotimm.predict(model, image)
