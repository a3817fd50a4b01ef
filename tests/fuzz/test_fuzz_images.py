"""Image files: headers, orientation, kinds and pixels, beside what Pillow says of them."""

from __future__ import annotations

import io

from documents import damaged
from hypothesis import strategies as st
from PIL import Image
from properties import bounded, fuzzed, outcome
from samples import HEIGHT, WIDTH, picture, tiff

from autotimm.images import inspect
from autotimm.images.decode import decode_image, decode_upright, deep_pixels
from autotimm.images.kinds import HEAD, kind_of, refusal
from autotimm.images.orientation import as_stored, orientation, turned

EXIF = Image.Exif()
EXIF[0x0112] = 6
FILES = [
    *(picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "TIFF")),
    *(picture("PNG", mode) for mode in ("P", "L", "1", "LA", "RGBA", "I;16")),
    *(picture("TIFF", mode) for mode in ("P", "L", "CMYK", "I;16", "F")),
    *(picture("TIFF", compression=how) for how in ("tiff_lzw", "tiff_deflate", "packbits")),
    *(picture("JPEG", mode) for mode in ("L", "CMYK")),
    *(picture(kind, exif=EXIF.tobytes()) for kind in ("JPEG", "PNG", "WEBP")),
    picture("JPEG", progressive=True),
]
TAGS = (254, 256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 320, 330, 339, 340, 341, 700)
TAGS += (322, 323, 324, 325, 338, 42113, 50706)
numbers = st.sampled_from((0, 1, 2, 3, 8, 16, 32, 64, 12, 255, 300, 65535, 10**9, 2**32 - 1, -1))
entries = st.lists(
    st.tuples(
        st.sampled_from(TAGS), st.integers(0, 18), st.sampled_from((0, 1, 1, 2, 4, 10**9)), numbers
    ),
    max_size=12,
)
PLAIN = [(256, 4, 1, WIDTH), (257, 4, 1, HEIGHT), (258, 3, 1, 8), (277, 3, 1, 1), (273, 4, 1, 300)]
PLAIN += [(279, 4, 1, WIDTH * HEIGHT), (259, 3, 1, 1), (262, 3, 1, 1)]
tiffs = st.builds(
    lambda plain, odd, big: tiff(
        sorted({one[0]: one for one in [*plain, *odd]}.values()), bytes(1000), big
    ),
    st.sampled_from((PLAIN, PLAIN, [])),
    entries,
    st.booleans(),
)
files = damaged(st.sampled_from(FILES), often=True) | tiffs | damaged(tiffs)


@fuzzed(files, examples=120)
def test_header(data: bytes) -> None:
    """Format and size, or a short reason; where Pillow opens the file, it says the same size."""
    found = outcome(lambda: inspect.inspect(data), ValueError)
    which = outcome(lambda: orientation(data))
    assert 1 <= which <= 8
    stored = outcome(lambda: bytes(as_stored(data)))
    assert len(stored) == len(data)
    if found is not None:
        shown = outcome(lambda: inspect.shown_size(data), ValueError, OSError)
        assert shown in (None, turned(found[1], which))
        if found[0] != "jpg":  # libjpeg and Pillow may go by another of several frames
            with bounded(), Image.open(io.BytesIO(stored)) as image:
                assert found[1] == image.size


@fuzzed(files, examples=60)
def test_pixels(data: bytes) -> None:
    for decode in (
        lambda: decode_image(data, WIDTH, HEIGHT),
        lambda: decode_upright(data),
        lambda: decode_image(data, WIDTH, HEIGHT, (0.0, 4095.0)),
    ):
        pixels = outcome(decode)
        assert pixels is None or (pixels.ndim == 3 and pixels.shape[2] == 3)
    deep = outcome(lambda: deep_pixels(data))
    if deep is not None:
        outcome(deep.extremes)


@fuzzed(st.binary(max_size=HEAD) | files, st.text(max_size=9), examples=60)
def test_kind(data: bytes, name: str) -> None:
    kind = outcome(lambda: kind_of(data[:HEAD], name))
    assert refusal(kind).isprintable()
