"""Every orientation in every format against PIL's ``exif_transpose`` of the same pixels, under the
Pillow that is installed and, before a release, under each that is allowed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from autotimm.images.decode import DataError, decode_image, decode_upright, deep_pixels
from autotimm.images.inspect import inspect, shown_size
from autotimm.images.orientation import as_stored, orientation

FORMATS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "TIFF packed": {"compression": "tiff_lzw"},
    "TIFF of 16 bits": {},
}


def picture(height: int, width: int) -> np.ndarray:
    cells = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cells.repeat(8, axis=0).repeat(8, axis=1)


def written(form: str, which: int | None, height: int = 4, width: int = 6) -> bytes:
    pixels = picture(height, width)
    image = Image.fromarray(pixels)
    if form == "TIFF of 16 bits":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    options, file = dict(FORMATS[form]), io.BytesIO()
    if which is not None and form.startswith("TIFF"):
        options["tiffinfo"] = {0x0112: which}
    elif which is not None:
        exif = Image.Exif()
        exif[0x0112] = which
        options["exif"] = exif
    image.save(file, form.split()[0], **options)
    return file.getvalue()


def truth(form: str, which: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels as stored, read from a file without an orientation, and PIL's upright ones."""
    with Image.open(io.BytesIO(written(form, None, height, width))) as image:
        stored = np.asarray(image)
    if form == "TIFF of 16 bits":
        stored = np.repeat((stored >> 8).astype(np.uint8)[..., None], 3, axis=2)
    plain = Image.fromarray(stored)
    plain.getexif()[0x0112] = which
    return stored, np.asarray(ImageOps.exif_transpose(plain))


def check(form: str, which: int, height: int, width: int) -> None:
    data = memoryview(written(form, which, height, width))
    stored, upright = truth(form, which, height, width)
    assert orientation(data) == which
    assert inspect(data)[1] == stored.shape[1::-1]
    assert shown_size(data) == upright.shape[1::-1]
    assert np.array_equal(decode_image(data, *stored.shape[1::-1]), stored)
    assert np.array_equal(decode_image(data, *upright.shape[1::-1]), stored) == (
        upright.shape == stored.shape
    )
    if upright.shape != stored.shape:
        assert np.array_equal(decode_image(data, *upright.shape[1::-1]), upright)
    assert np.array_equal(decode_upright(data), upright)
    deep = deep_pixels(data)
    assert (deep is not None) == (form == "TIFF of 16 bits")
    if deep is not None:
        assert np.array_equal(deep.values >> 8, stored[..., 0])


TABLE = [
    (form, which, *size) for form in FORMATS for which in range(1, 9) for size in ((4, 6), (5, 5))
]


@pytest.mark.parametrize(("form", "which", "height", "width"), TABLE)
def test_pixels_and_sizes_agree(form: str, which: int, height: int, width: int) -> None:
    check(form, which, height, width)


def test_a_size_that_is_neither_is_refused() -> None:
    for form in FORMATS:
        with pytest.raises(DataError, match=r"is 48 x 32 pixels, its annotations say 32 x 47"):
            decode_image(written(form, 6), 32, 47)
        with pytest.raises(DataError, match=r"is 48 x 32 pixels, its annotations say 32 x 48"):
            decode_image(written(form, 3), 32, 48)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4, 9])
def test_a_tiffs_orientation_may_be_of_any_whole_type(kind: int, order: str) -> None:
    """PIL turns such files, too."""
    from test_depth import tiff

    stored = np.arange(24, dtype=np.uint8).reshape(4, 6)
    data = tiff(stored, 8, 1, (0x0112, kind, 6), order=order)
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert upright.shape == (6, 4)
    assert np.array_equal(decode_upright(data)[..., 0], upright)
    assert np.array_equal(decode_image(data, 6, 4)[..., 0], stored)
    assert np.array_equal(decode_image(data, 4, 6)[..., 0], upright)
    assert (inspect(data)[1], shown_size(data)) == ((6, 4), (4, 6))


def test_an_orientation_may_be_in_xmp() -> None:
    """As PIL reads it, where EXIF says nothing."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    image, stored = Image.fromarray(picture(4, 6)), picture(4, 6)
    image.save(tiff := io.BytesIO(), "TIFF", tiffinfo={700: xmp})
    image.save(webp := io.BytesIO(), "WEBP", lossless=True, xmp=xmp)
    for data in (tiff.getvalue(), webp.getvalue()):
        assert orientation(data) == 6
        assert np.array_equal(decode_image(data, 48, 32), stored)
        assert np.array_equal(decode_image(data, 32, 48), np.rot90(stored, -1))
    assert len(as_stored(tiff.getvalue())) == len(tiff.getvalue())


def test_metadata_of_any_bytes_turn_nothing() -> None:
    rng = np.random.default_rng(0)
    for form in FORMATS:
        data = written(form, 6)
        for _ in range(200):
            broken = bytearray(data[: rng.integers(0, 200)])
            for at in rng.integers(0, max(len(broken), 1), 3):
                broken[at : at + 1] = rng.bytes(1)
            assert 1 <= orientation(bytes(broken)) <= 8
            as_stored(bytes(broken))


@pytest.mark.release
@pytest.mark.parametrize("version", ["10.3.0", "11.3.0", "12.1.0"])
def test_other_versions_of_pillow_agree(version: str, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    needed = [f"pillow=={version}", "numpy>=2", "simplejpeg", "opencv-python-headless", "orjson"]
    installed = subprocess.run(
        [python, "-m", "pip", "install", "-q", *needed, "pytest"], capture_output=True, text=True
    )
    if installed.returncode:
        pytest.skip(f"Pillow {version} cannot be installed: {installed.stderr[-300:]}")
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [python, __file__],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert found.stdout == f"{version}: {len(TABLE)} agree\n", found.stdout + found.stderr


if __name__ == "__main__":  # under another Pillow, see above
    for row in TABLE:
        check(*row)
    sys.stdout.write(f"{Image.__version__}: {len(TABLE)} agree\n")
