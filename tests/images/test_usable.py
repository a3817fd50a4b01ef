"""What autotimm reports of an image file when it first reads it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from autotimm.images import jpeg
from autotimm.images.depths import Depths
from autotimm.images.usable import PAGES, usable


def pages(kind: str, count: int = 3, **options: Any) -> bytes:
    """Several pictures in a file, of different colours."""
    first, *more = (Image.new("RGB", (64, 48), (90 * n, 50, 20)) for n in range(count))
    file = io.BytesIO()
    first.save(file, kind, save_all=True, append_images=more, **options)
    return file.getvalue()


def pyramid(kind: int) -> bytes:
    """A TIFF whose second page says how it relates to the first, in tag 254 (NewSubfileType)."""
    first, second = pages("TIFF", 1), io.BytesIO()
    Image.new("RGB", (32, 24)).save(second, "TIFF", tiffinfo={254: kind})
    file = io.BytesIO(first)
    from PIL.TiffImagePlugin import AppendingTiffWriter

    with AppendingTiffWriter(file) as appending:
        appending.write(second.getvalue())
        appending.newFrame()
        return file.getvalue()


def told(data: bytes) -> list[str]:
    kinds: list[str] = []
    usable(data, (64, 48), "a", Depths(), kinds.append)
    return kinds


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG"])
def test_an_image_of_several_pages_is_told(kind: str) -> None:
    """A stack of slices, a time series: annotations of the later pages would be of other pixels."""
    assert told(pages(kind)) == [PAGES]
    assert told(pages(kind, 1)) == []


def test_previews_are_no_pages() -> None:
    assert told(pages("MPO")) == []  # of phones: a second picture behind the first
    assert told(pyramid(1)) == told(pyramid(4)) == []
    assert told(pyramid(2)) == [PAGES]


def test_the_limit_of_pixels_is_that_of_pil() -> None:
    assert 2 * (Image.MAX_IMAGE_PIXELS or 0) == jpeg.LARGEST
