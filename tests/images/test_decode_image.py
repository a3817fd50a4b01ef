"""Decoding: against PIL, for every kind of image that there is."""

from __future__ import annotations

import io
import queue
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from canvas import picture
from PIL import Image, ImageOps

from autotimm.images import decode
from autotimm.images.decode import DataError, decode_image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_what_pil_makes_of_it(mode: str) -> None:
    data = encoded(Image.fromarray(picture()).convert(mode), "JPEG", quality=95)
    truth = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    found = decode_image(memoryview(data), 60, 40)
    assert found.dtype == np.uint8
    assert np.array_equal(found, truth)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_of_any_mode(mode: str) -> None:
    colour = Image.fromarray(picture())
    if mode == "I;16":
        grey = np.array(colour.convert("L")).astype(np.uint16) * 256 + 77
        image, truth = Image.fromarray(grey), np.repeat((grey >> 8)[..., None], 3, 2)
    else:
        image = colour.convert(mode)
        truth = np.array(image.convert("RGB"))
    found = decode_image(encoded(image, "PNG"), 60, 40)
    assert found.dtype == np.uint8
    assert np.array_equal(found, truth)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_where_the_record_asks_for_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(picture()), "JPEG", exif=exif, quality=95)
    stored = Image.open(io.BytesIO(data))
    assert np.array_equal(decode_image(data, 60, 40), np.array(stored))
    if orientation > 4:
        turned = np.array(ImageOps.exif_transpose(stored))
        assert np.array_equal(decode_image(data, 40, 60), turned)
    else:
        with pytest.raises(DataError, match="is 60 x 40 pixels, its annotations say 40 x 60"):
            decode_image(data, 40, 60)


@pytest.mark.parametrize(
    "data",
    [b"", b"nothing", b"\xff\xd8\xff", encoded(Image.fromarray(picture()), "JPEG")[:500]],
)
def test_what_does_not_decode_is_a_data_error(data: bytes) -> None:
    with pytest.raises(DataError, match=r"the image cannot be decoded|file is empty") as error:
        decode_image(data, 60, 40)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("error")
def test_threads_that_decode_leave_warnings_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    data, real, within = encoded(Image.fromarray(picture()), "PNG"), decode.rgb, queue.Queue()

    def waits(image: Image.Image, *rest: Any) -> np.ndarray:
        within.put(go_on := threading.Event())
        go_on.wait()
        warnings.warn("odd metadata", stacklevel=1)
        return real(image, *rest)

    monkeypatch.setattr(decode, "rgb", waits)
    before = [*warnings.filters]
    with ThreadPoolExecutor(2) as pool:
        results, events = [], []
        for _ in range(2):
            results.append(pool.submit(decode_image, data, 60, 40))
            results[-1].add_done_callback(lambda _: within.put(threading.Event()))  # it failed
            events.append(within.get())
        for event, result in zip(events, results, strict=True):  # in the order of arrival
            event.set()
            assert np.array_equal(result.result(), picture())
    assert warnings.filters == before


def test_a_program_that_draws_pictures_is_never_run() -> None:
    """PIL runs Ghostscript for EPS files."""
    with pytest.raises(DataError, match=r"not an image \(PostScript\): save it as PNG"):
        decode_image(encoded(Image.fromarray(picture()), "EPS"), 60, 40)


def in_rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


# Every file there that can be read, and the mode in which PIL opens it.
ODD_IMAGES = {
    "mmcv/color.jpg": "RGB",
    "mmcv/color_exif.jpg": "RGB",
    "mmcv/gray_alpha.png": "LA",
    "mmcv/grayscale.jpg": "L",
    "mmcv/grayscale_dim3.jpg": "L",
    "pillow/hopper_bw_500.png": "1",
    "pillow/hopper_orientation_2.jpg": "RGB",
    "pillow/hopper_orientation_3.jpg": "RGB",
    "pillow/hopper_orientation_5.jpg": "RGB",
    "pillow/hopper_orientation_6.jpg": "RGB",
    "pillow/hopper_orientation_8.jpg": "RGB",
    "pillow/i_trns.png": "I;16",  # its values fit into 8 bits
    "pillow/pil_sample_cmyk.jpg": "CMYK",
    "pillow/uncompressed_la.png": "LA",
    "pillow/xmp_tags_orientation.png": "RGBA",
}


REFUSED = {"mmcv/uint16-5channel.tif": "TIFF of 5 channels of 16-bit integers, which is not read"}


def test_the_table_of_odd_images_is_whole(shared_data: Path) -> None:
    folder = shared_data / "odd" / "image_modes"
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*.*")}
    assert files == set(ODD_IMAGES) | set(REFUSED)


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_an_odd_image_is_what_pil_makes_of_it_as_stored(shared_data: Path, name: str) -> None:
    path = shared_data / "odd" / "image_modes" / name
    with Image.open(path) as image:
        assert image.mode == ODD_IMAGES[name]
        truth = in_rgb(image)
    found = decode_image(path.read_bytes(), *truth.shape[1::-1])
    assert found.dtype == np.uint8
    assert np.array_equal(found, truth)
    assert found.std() > 1


def test_an_odd_image_is_turned_where_the_record_is(shared_data: Path) -> None:
    path = shared_data / "odd/image_modes/mmcv/color_exif.jpg"
    with Image.open(path) as image:
        truth = in_rgb(ImageOps.exif_transpose(image))
    assert truth.shape == (400, 300, 3)
    assert np.array_equal(decode_image(path.read_bytes(), 300, 400), truth)


@pytest.mark.parametrize("name", REFUSED)
def test_an_odd_image_that_cannot_be_read_is_refused(shared_data: Path, name: str) -> None:
    with pytest.raises(DataError, match=REFUSED[name]):
        decode_image((shared_data / "odd/image_modes" / name).read_bytes(), 100, 100)
