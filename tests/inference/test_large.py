"""Images that are decoded in bands: the pixels are those of PIL, tiles and masks in their place."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from autotimm.coco import masks
from autotimm.images.decode import rgb
from autotimm.inference import bands as bands_module
from autotimm.inference import large, sources
from autotimm.inference.large import large_image
from autotimm.inference.sources import image_of, pixels_of
from autotimm.structures import InputError

SIZE = (203, 157)  # width, height: of no even number of bytes, bands or tiles


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are large from 100 pixels on, and a band has some twenty rows."""
    monkeypatch.setattr(large, "LARGEST", 100)
    monkeypatch.setattr(sources, "LARGE", 100)
    monkeypatch.setattr(bands_module, "_BAND", 4096)


def picture(mode: str = "RGB") -> Image.Image:
    """Noise beside gradients, so that a PNG has rows of each filter."""
    rng = np.random.default_rng(0)
    ys, xs = np.mgrid[: SIZE[1], : SIZE[0]]
    pixels = np.stack([xs, ys, (xs + ys) // 2], -1).astype(np.uint8)
    pixels[40:90, 50:120] = rng.integers(0, 256, (50, 70, 3))
    image = Image.fromarray(pixels)
    if mode == "LA":
        return Image.merge("LA", [image.convert("L"), image.convert("L")])
    return image.convert(mode)


def content(image: Image.Image, kind: str, **how: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def of_bands(data: bytes) -> np.ndarray:
    found = large_image(data, "it")
    assert found is not None
    ((_, pixels),) = list(found.tiles(2**16, 0.2))
    return pixels


def whole_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise AssertionError("decoded as a whole")

    monkeypatch.setattr(bands_module, "_whole", refused)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_a_png_in_bands_has_pils_pixels(
    mode: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (bits < 8) != (mode == "P") and bits != 8:
        pytest.skip("only palettes have fewer bits here")
    image = picture(mode)
    if mode == "P":
        image = picture().quantize(2**bits)
    data = content(image, "PNG", **({"bits": bits} if mode == "P" else {}))
    whole_only(monkeypatch)
    np.testing.assert_array_equal(of_bands(data), rgb(image))


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


@pytest.mark.parametrize("bits", [2, 4])
def test_a_grey_png_of_few_bits_in_many_small_chunks(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PIL writes none: filter 2, "up", which needs the row before as it is stored."""
    rng = np.random.default_rng(1)
    row = -(-SIZE[0] * bits // 8)
    stored = rng.integers(0, 256, (SIZE[1], row), np.uint8)
    filtered = np.diff(stored, axis=0, prepend=np.zeros((1, row), np.uint8))
    body = zlib.compress(b"".join(b"\2" + one.tobytes() for one in filtered))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *SIZE, bits, 0, 0, 0, 0))
    data += b"".join(chunk(b"IDAT", body[i : i + 77]) for i in range(0, len(body), 77))
    data += chunk(b"IEND", b"")
    whole_only(monkeypatch)
    np.testing.assert_array_equal(of_bands(data), rgb(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(
    "how",
    [
        {"compression": None},
        {"compression": "tiff_lzw"},
        {"compression": "tiff_adobe_deflate", "tiffinfo": {317: 2}},
        {"compression": "packbits"},
        {"compression": "jpeg"},
        {"compression": "tiff_lzw", "big_tiff": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_a_tiff_in_bands_has_pils_pixels(
    mode: str, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if how["compression"] == "jpeg" and mode not in ("L", "RGB"):
        pytest.skip("no JPEG of these")
    if 317 in how.get("tiffinfo", {}) and mode == "1":
        pytest.skip("no predictor of single bits")
    data = content(picture(mode), "TIFF", **{"strip_size": 900} | how)
    whole_only(monkeypatch)
    np.testing.assert_array_equal(of_bands(data), rgb(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiled_tiff_in_bands(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 64 x 48, which PIL cannot write; deflated."""
    pixels = rgb(picture())
    across, down = -(-SIZE[0] // 64), -(-SIZE[1] // 48)
    padded = np.zeros((down * 48, across * 64, 3), np.uint8)
    padded[: SIZE[1], : SIZE[0]] = pixels
    tiles = [
        zlib.compress(padded[y * 48 :][:48, x * 64 :][:, :64].tobytes())
        for y in range(down)
        for x in range(across)
    ]
    tags = ImageFileDirectory_v2(b"II\x2a\0" + bytes(4) if order == "<" else b"MM\0\x2a" + bytes(4))
    plain = {256: SIZE[0], 257: SIZE[1], 258: (8, 8, 8), 259: 8, 262: 2, 277: 3, 322: 64, 323: 48}
    for tag, value in plain.items():
        tags[tag] = value
    tags[325] = tuple(map(len, tiles))
    tags[324] = tuple(range(len(tiles)))
    room = len(tags.tobytes(8)) + 8
    tags[324] = tuple((room + np.cumsum([0, *map(len, tiles[:-1])])).tolist())
    head = b"II\x2a\0\x08\0\0\0" if order == "<" else b"MM\0\x2a\0\0\0\x08"
    body = tags.tobytes(8)
    tags[324] = tuple((8 + len(body) + np.cumsum([0, *map(len, tiles[:-1])])).tolist())
    data = head + tags.tobytes(8) + b"".join(tiles)
    np.testing.assert_array_equal(rgb(Image.open(io.BytesIO(data))), pixels)
    whole_only(monkeypatch)
    np.testing.assert_array_equal(of_bands(data), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "PPM", "GIF", "WEBP"])
def test_what_cannot_be_cut_is_decoded_as_a_whole(kind: str) -> None:
    data = content(picture(), kind)
    np.testing.assert_array_equal(of_bands(data), rgb(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "TIFF as a whole"])
def test_tiles_are_upright_and_in_their_place(
    kind: str, square: bool, orientation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path, how = tmp_path / "it", {}
    if kind == "TIFF as a whole":
        monkeypatch.setattr(bands_module, "_BAND", 1000)
        how = {"compression": "tiff_lzw", "strip_size": 2**20}
    stored = picture().crop((0, 0, 150, 150)) if square else picture()
    stored.save(path, kind.split()[0], exif=exif, **how)
    found = image_of(path, tiled=True)
    assert isinstance(found, large.LargeImage)
    with Image.open(path) as image:
        truth = np.asarray(ImageOps.exif_transpose(image))
    assert found.shape == truth.shape
    seen = np.zeros(truth.shape, int)
    for (y1, x1, y2, x2), pixels in found.tiles(64, 0.2):
        np.testing.assert_array_equal(pixels, truth[y1:y2, x1:x2])
        seen[y1:y2, x1:x2] += 1
    assert seen.min() == 1
    np.testing.assert_array_equal(found.reduced, truth)  # small enough to stay


def test_the_orientation_of_a_large_image_may_be_in_xmp(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    path = tmp_path / "it"
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    ways: dict[str, dict[str, Any]] = {
        "TIFF": {"tiffinfo": {700: xmp}},
        "WEBP": {"lossless": True, "xmp": xmp},
        "PNG": {"pnginfo": info},
    }
    truth = np.rot90(np.asarray(picture()), -1)
    for kind, how in ways.items():
        picture().save(path, kind, **how)
        found = image_of(path, tiled=True)
        assert isinstance(found, large.LargeImage) and found.shape == truth.shape
        ((_, pixels),) = found.tiles(2**16, 0.2)
        np.testing.assert_array_equal(pixels, truth)


@pytest.mark.parametrize("kind", ["TIFF", "WEBP"])
def test_what_pil_refuses_for_its_size_is_refused_by_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TIFF that cannot be cut, and a WebP: PIL's limit holds for them here, too."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    monkeypatch.setattr(bands_module, "_BAND", 1000)
    path = tmp_path / "it"
    how = {"compression": "tiff_lzw", "strip_size": 2**20} if kind == "TIFF" else {}
    picture().save(path, kind, **how)
    with pytest.raises(
        InputError, match=r"it: (this kind of TIFF is .*save it as TIFF of|image too)"
    ):
        list(image_of(path, tiled=True).tiles(64, 0.2))  # type: ignore[union-attr]


def test_the_smaller_picture_and_its_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "_LONGEST", 50)
    pixels = np.zeros((157, 203, 3), np.uint8)
    pixels[33:90, 47:130] = 255
    found = large_image(content(Image.fromarray(pixels), "PNG"), "it")
    assert found is not None and found.factor == 5
    for _ in found.tiles(64, 0.2):
        pass
    assert found.reduced.shape == (31, 40, 3)
    for _ in range(2):
        mask = masks.encode(pixels[..., 0] > 0)
        shrunk = masks.decode(large._shrunk(mask, 5, 31, 40))
        np.testing.assert_array_equal(shrunk, found.reduced[..., 0] > 127)
    nothing = masks.encode(np.zeros((157, 203), np.uint8))
    assert masks.area(large._shrunk(nothing, 5, 31, 40)) == 0


def test_broken_and_other_large_images_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content(picture(), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a.png: has 203 x 157 pixels, and [\d,]+ are .*--tile"):
        pixels_of(path)
    for cut, message in ((len(data) // 2, "cut off or broken"), (len(data) // 3, "cut off")):
        path.write_bytes(data[:cut])
        found = image_of(path, tiled=True)
        assert isinstance(found, large.LargeImage)
        with pytest.raises(InputError, match=rf"a.png: the image cannot be decoded .*{message}"):
            list(found.tiles(64, 0.2))
    grey = Image.fromarray(np.zeros((90, 90), np.uint16))
    path.write_bytes(content(grey, "PNG"))
    with pytest.raises(InputError, match=r"a.png: has more than 8 bits a channel"):
        list(image_of(path, tiled=True).tiles(64, 0.2))  # type: ignore[union-attr]
    path.write_bytes(content(picture(), "BMP"))
    monkeypatch.setattr(bands_module, "_free_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"a.png: takes .* of memory, .*save it as TIFF"):
        list(image_of(path, tiled=True).tiles(64, 0.2))  # type: ignore[union-attr]
    monkeypatch.setattr(large, "_MOST", 1000)
    with pytest.raises(InputError, match=r"a.png: has 203 x 157 pixels, but a mask has 1,000"):
        pixels_of(path)
