"""Images of more than 8 bits a channel against arithmetic, in files written byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autotimm.images.decode import decode_image, deep_pixels
from autotimm.images.depth import DataError, checked_range, range_of
from autotimm.images.depths import Depths
from autotimm.images.inspect import inspect
from autotimm.structures import UPPER_BITS, InputError

RAMP = np.arange(48 * 64).reshape(48, 64)  # 0 to 3071


def png(values: np.ndarray, *chunks: tuple[bytes, bytes], kind: int | None = None) -> bytes:
    """A PNG of 16 bits a channel: the specification's own words, and zlib."""
    channels = 1 if values.ndim == 2 else values.shape[2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels] if kind is None else kind

    def chunk(name: bytes, content: bytes) -> bytes:
        sum_ = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", sum_)

    height, width = values.shape[:2]
    depth = 8 if kind == 3 else 16
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    rows = values.astype(np.uint8 if kind == 3 else ">u2")
    lines = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    body = [chunk(b"IHDR", head), *(chunk(*c) for c in chunks), chunk(b"IDAT", lines)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body) + chunk(b"IEND", b"")


def tiff(
    values: np.ndarray,
    bits: int,
    form: int,
    *tags: tuple[int, int, int],
    order: str = "<",
    photometric: int | None = None,
    width: int | None = None,
) -> bytes:
    """An uncompressed TIFF (TIFF 6.0); ``form`` is 1 unsigned, 2 signed, 3 float, 6 complex."""
    channels = 1 if values.ndim == 2 else values.shape[2]
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    photometric = (1 if channels == 1 else 2) if photometric is None else photometric
    entries = {
        256: (4, 1, width or values.shape[1]),
        257: (4, 1, len(values)),
        258: (3, channels, bits),
        259: (3, 1, 1),
        262: (3, 1, photometric),
        273: (4, 1, 0),
        277: (3, 1, channels),
        278: (4, 1, len(values)),
        279: (4, 1, len(data)),
        339: (3, channels, form),
        **{tag: (kind, 1, value) for tag, kind, value in tags},
    }
    at = 8 + 2 + 12 * len(entries) + 4
    behind = b""
    listed = b""
    entries[273] = (4, 1, at + 2 * 2 * channels * (channels > 2))
    for tag, (kind, count, value) in sorted(entries.items()):
        listed += struct.pack(f"{order}HHI", tag, kind, count)
        if kind == 3 and count > 2:
            listed += struct.pack(f"{order}I", at + len(behind))
            behind += struct.pack(f"{order}{count}H", *[value] * count)
        elif kind == 3:
            listed += struct.pack(f"{order}HH", value, value if count == 2 else 0)
        else:
            listed += struct.pack(f"{order}I", value)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}IH", 8, len(entries))
    return head + listed + struct.pack(f"{order}I", 0) + behind + data


def pgm(values: np.ndarray, largest: int) -> bytes:
    height, width = values.shape
    head = b"P5\n# made here\n%d %d\n%d\n" % (width, height, largest)
    return head + values.astype(">u2").tobytes()


def grey(truth: np.ndarray) -> np.ndarray:
    return np.repeat(truth.astype(np.uint8)[..., None], 3, axis=2)


def decoded(data: bytes, pixel_range: object = None) -> np.ndarray:
    height, width = RAMP.shape
    return decode_image(data, width, height, pixel_range)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "truth"),
    [
        (tiff(RAMP.astype(np.uint16), 16, 1, (281, 3, 4095)), RAMP >> 4),
        (tiff(RAMP.astype(np.uint16), 16, 1, (341, 3, 16383)), RAMP >> 6),
        (tiff(RAMP.astype(np.uint16), 16, 1, (281, 3, 4095), order=">"), RAMP >> 4),
        (png(RAMP, (b"sBIT", b"\x0c")), RAMP >> 4),
        (png(RAMP << 4, (b"sBIT", b"\x0c")), RAMP << 4 >> 8),  # as the specification has it
        (pgm(RAMP, 4095), RAMP >> 4),
        (pgm(RAMP, 3071), RAMP * 256 // 3072),
    ],
)
def test_what_a_file_declares_wins(data: bytes, truth: np.ndarray) -> None:
    for given in (None, (0, 65535), (-5, 17)):
        found = decoded(data, given)
        assert np.abs(found.astype(int) - grey(truth)).max() <= (1 if data[:2] == b"P5" else 0)
    assert deep_pixels(data).white is not None


def test_twelve_packed_bits_declare_themselves() -> None:
    pairs = RAMP.reshape(48, 32, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    packed = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], -1).astype(np.uint8)
    data = tiff(packed.reshape(48, 96), 12, 1, width=64)
    assert np.array_equal(decoded(data, (0, 65535)), grey(RAMP >> 4))


def test_a_statistic_is_no_declaration() -> None:
    """TIFF 6.0 has MaxSampleValue for statistics: one image's own maximum would set its scale."""
    data = tiff(RAMP.astype(np.uint16), 16, 1, (281, 3, 3071 - 17))
    assert deep_pixels(data).white is None
    assert np.array_equal(decoded(data, (0, 8191)), grey(RAMP >> 5))


@pytest.mark.parametrize(
    ("values", "given", "truth"),
    [
        (RAMP.astype(np.uint16) * 21, (0, 65535), RAMP * 21 >> 8),
        (RAMP.astype(np.uint16) % 256, (0, 255), RAMP % 256),
        (RAMP.astype(np.uint16) + 28000, (28000, 31071), RAMP * 256 // 3072),
        (RAMP.astype(np.uint16), (1000, 1050), np.rint((RAMP.clip(1000, 1050) - 1000) * 5.1)),
        ((RAMP - 1000).astype(np.int16), (-1000, 2071), RAMP * 256 // 3072),
        (RAMP.astype(np.uint32) * 1_000_000, (0, 2**32 - 1), RAMP * 1_000_000 >> 24),
        (RAMP.astype(np.int32) - 7, (-7, 4088), RAMP >> 4),
        ((RAMP % 256 / 255).astype(np.float32), (0, 1), RAMP % 256),
        ((RAMP % 256).astype(np.float32), (0, 255), RAMP % 256),
        ((RAMP % 256 / 255).astype(np.float64), (0, 1), RAMP % 256),
    ],
)
def test_a_range_maps_values_as_arithmetic_does(
    values: np.ndarray, given: tuple[float, float], truth: np.ndarray
) -> None:
    form = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = tiff(values, 8 * values.dtype.itemsize, form)
    assert np.array_equal(decoded(data, given), grey(truth))


def test_colours_of_16_bits_keep_what_their_range_says() -> None:
    colours = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], -1).astype(np.uint16)
    opaque = np.dstack([colours, np.full_like(RAMP, 65535)]).astype(np.uint16)
    for data in (png(colours), png(opaque), tiff(colours, 16, 1), tiff(colours, 16, 1, order=">")):
        assert np.array_equal(decoded(data, (0, 4095)), colours >> 4)
        assert np.array_equal(decoded(data), colours >> 4)
        assert np.array_equal(decoded(data, UPPER_BITS), colours >> 8)
    declared = png(colours, (b"sBIT", b"\x0c\x0c\x0c"))
    assert np.array_equal(decoded(declared, (0, 65535)), colours >> 4)
    light = png(np.stack([RAMP, RAMP], -1))
    assert np.array_equal(decoded(light, (0, 4095)), grey(RAMP >> 4))


def test_0_may_be_white() -> None:
    data = tiff(RAMP.astype(np.uint16), 16, 1, photometric=0)
    assert np.array_equal(decoded(data, (0, 4095)), 255 - grey(RAMP >> 4))


def test_no_number_is_black_and_nothing_but_such_is_refused() -> None:
    values = (RAMP % 256 / 255).astype(np.float32)
    values[0, :4] = np.nan, np.inf, -np.inf, 2
    found = decoded(tiff(values, 32, 3), (0, 1))
    assert found[0, :4, 0].tolist() == [0, 255, 0, 255]
    assert np.array_equal(found[1:], grey(RAMP % 256)[1:])
    nothing = tiff(np.full_like(values, np.nan), 32, 3)
    with pytest.raises(DataError, match="none of the image's pixels is a number"):
        decoded(nothing, (0, 1))
    with pytest.raises(DataError, match="none of the image's pixels is a number"):
        Depths().add(deep_pixels(nothing), "a.tif")


@pytest.mark.parametrize("order", ["<", ">"])
def test_floats_of_64_bits_are_read(order: str) -> None:
    values = (RAMP % 256 / 255).astype(np.float64)
    values[0, :3] = np.nan, -1.7976931348623157e308, 1.7976931348623157e308
    data = tiff(values, 64, 3, order=order)
    assert inspect(data) == ("tif", RAMP.shape[::-1])
    found = decoded(data, (0, 1))
    assert not found[0, :3].any()
    assert np.array_equal(found[1:], grey(RAMP % 256)[1:])
    assert deep_pixels(data).extremes() == (0, 1)
    with pytest.raises(ValueError, match="image c"):
        inspect(data[:-400])


def test_images_of_older_checkpoints_keep_their_upper_bits() -> None:
    values = RAMP.astype(np.uint16)
    assert np.array_equal(decoded(png(values), UPPER_BITS), grey(RAMP >> 8))
    assert np.array_equal(decoded(png(values % 256), UPPER_BITS), grey(RAMP % 256))
    for one, what in ((values.astype(np.float32), "floating-point"), (RAMP - 9, "or above 65535")):
        kind = 3 if what == "floating-point" else 2
        data = tiff(one.astype(np.float32 if kind == 3 else np.int32), 32, kind)
        with pytest.raises(DataError, match=rf"{what}.*: give .*--pixel-range LOW,HIGH"):
            decoded(data, UPPER_BITS)


@pytest.mark.parametrize(
    ("low", "high", "floats", "expected"),
    [
        (0, 255, False, (0, 255)),
        (3, 90, False, (0, 127 + 128)),
        (7, 4080, False, (0, 4095)),
        (0, 4096, False, (0, 8191)),
        (100, 1900, False, (0, 2047)),
        (0, 60000, False, (0, 65535)),
        (0, 70000, False, (0, 131071)),
        (28000, 32000, False, (28000, 32000)),
        (-1024, 3071, False, (-1024, 3071)),
        (5, 5, False, (5, 6)),
        (0, 0, False, (0, 255)),
        (0.02, 0.9, True, (0, 1)),
        (0.02, 0.3, True, (0.02, 0.3)),
        (0, 255, True, (0, 255)),
        (0, 80.5, True, (0, 80.5)),
        (0, 3000, True, (0, 4095)),
        (-1, 1, True, (-1, 1)),
        (0, 0, True, (0, 1)),
    ],
)
def test_the_range_of_a_data_set(
    low: float, high: float, floats: bool, expected: tuple[float, float]
) -> None:
    assert range_of(low, high, floats) == expected


def test_a_few_broken_pixels_do_not_set_the_range() -> None:
    values = np.tile(RAMP, (5, 5)).astype(np.uint16)  # 76,800 pixels
    values[0, :7] = 65535
    assert deep_pixels(png(values)).extremes() == (0, 3071)
    values[0, 7] = 65535
    assert deep_pixels(png(values)).extremes() == (0, 65535)


def test_the_parts_of_a_data_set_add_up_in_any_order() -> None:
    files = [
        png(RAMP.astype(np.uint16)),
        tiff((RAMP - 40).astype(np.int16), 16, 2),
        png(RAMP, (b"sBIT", b"\x0c")),
        png(RAMP * 3),
    ]
    found = set()
    for order in permutations(files):
        whole = Depths()
        for half in (order[:2], order[2:]):
            part = Depths()
            for data in half:
                part.add(deep_pixels(data), "a")
            whole.update(part)
        found.add((whole.declared, whole.others, whole.low, whole.high, whole.pixel_range()))
    assert found == {(1, 3, -40.0, 9213.0, (-40.0, 9213.0))}


def test_images_of_8_bits_have_no_range() -> None:
    picture = Image.fromarray((RAMP % 256).astype(np.uint8))
    for kind in ("PNG", "JPEG", "TIFF", "PPM", "WEBP", "GIF", "BMP"):
        picture.save(file := io.BytesIO(), kind)
        assert deep_pixels(file.getvalue()) is None
    assert Depths().pixel_range() is None


@pytest.mark.parametrize(
    "data",
    [
        tiff(RAMP.astype(np.complex64), 64, 6),
        tiff(RAMP.astype(np.uint8), 8, 1, photometric=3),  # of a palette that it has not
        png(RAMP % 256, kind=3),
    ],
)
def test_what_gives_no_pixels_is_refused_at_the_first_look(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"complex floats|cannot be opened|palette"):
        inspect(data)


def test_signed_bytes_are_not_taken_for_plain_ones() -> None:
    values = (RAMP // 16).astype(np.int16) - 128
    data = tiff(values.astype(np.int8), 8, 2)
    deep = deep_pixels(data)
    assert deep is not None and np.array_equal(deep.values, values)
    assert np.array_equal(decoded(data, (-128, 127)), grey(values + 128))


@pytest.mark.parametrize("order", ["<", ">"])
def test_channels_in_planes_of_their_own_are_read_with_8_bits_and_refused_with_more(
    order: str,
) -> None:
    colours = np.stack([RAMP >> 4, RAMP >> 5, RAMP >> 6], -1)
    # A strip a plane: three offsets and lengths, which the helper writes one of.
    for bits in (8, 16):
        planes = colours.transpose(2, 0, 1).astype(f"u{bits // 8}")
        data = in_planes(planes, order)
        if bits == 8:
            assert np.array_equal(decoded(data), colours)
        else:
            for reader in (inspect, decoded):
                with pytest.raises(ValueError, match=r"16-bit channels are planes apart.*save"):
                    reader(data)


def in_planes(planes: np.ndarray, order: str) -> bytes:
    """An uncompressed TIFF whose channels [3, h, w] are stored one behind the other."""
    count, height, width = planes.shape
    bits = 8 * planes.dtype.itemsize
    data = [plane.astype(planes.dtype.newbyteorder(order)).tobytes() for plane in planes]
    entries = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [bits] * count),
        (259, 3, [1]),
        (262, 3, [2]),
        (273, 4, [1000 + len(data[0]) * n for n in range(count)]),
        (277, 3, [count]),
        (278, 4, [height]),
        (279, 4, [len(one) for one in data]),
        (284, 3, [2]),
    ]
    listed, behind, at = b"", b"", 8 + 2 + 12 * len(entries) + 4
    for tag, kind, values in entries:
        packed = struct.pack(f"{order}{len(values)}{'HI'[kind - 3]}", *values)
        if len(packed) > 4:
            behind, packed = behind + packed, struct.pack(f"{order}I", at + len(behind))
        listed += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return (head + listed + bytes(4) + behind).ljust(1000, b"\0") + b"".join(data)


@pytest.mark.parametrize(
    "value",
    ["1", "5,4", "a,b", "0,inf", "nan,1", "-1e308,1e308", "0,1e-320", "1,2,3", [], [3, 3], 7],
)
def test_a_range_that_cannot_be_is_refused(value: str | Sequence[int]) -> None:
    with pytest.raises(InputError, match=r"^--pixel-range is .* such as 0,4095"):
        checked_range("--pixel-range", value)
    assert checked_range("x", "-5,1.5") == checked_range("x", [-5, 1.5]) == (-5.0, 1.5)


SHARES = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)


@pytest.mark.parametrize(
    ("values", "missing", "low", "high"),
    [
        (np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64), "-9999", 0, 1),
        (
            np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64),
            "-3.4028234663852886e+38",
            0,
            1,
        ),
        (np.arange(4096, dtype=np.uint16).reshape(64, 64), "65535\0", 0, 4095),
    ],
)
def test_pixels_without_data_do_not_count_and_are_black(
    values: np.ndarray, missing: str, low: int, high: int
) -> None:
    values = values.copy()
    values[:20] = np.asarray(float(missing.strip("\0"))).astype(values.dtype)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF", tiffinfo={42113: missing})
    found = decode_image(file.getvalue(), 64, 64)[..., 0]
    assert not found[:20].any()
    depths = Depths()
    image = deep_pixels(file.getvalue())
    assert image is not None
    depths.add(image, "a.tif")
    assert depths.pixel_range() == (low, high)
    assert found[20:].max() == 255
    assert len(np.unique(found[20:])) > 150


@pytest.mark.parametrize(
    ("value", "kind"),
    [(-9999, np.float32), (1e20, np.float32), (-32768, np.int16), (65535, np.uint16)],
)
def test_a_value_far_from_all_others_is_told_with_the_way_out(value: float, kind: Any) -> None:
    """What stands for no data where no tag says so."""
    values = (RAMP + 200).astype(kind)
    empty = values.copy()
    empty[:9, :9] = value
    stretched, plain = Depths(), Depths()
    form = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    for image in (values, empty, empty):
        stretched.add(deep_pixels(tiff(image, 8 * image.dtype.itemsize, form)), "a.tif")
        plain.add(deep_pixels(tiff(values, 8 * image.dtype.itemsize, form)), "a.tif")
    assert plain.stretched() == ""
    told = stretched.stretched()
    assert f"{value:g} (2 images)" in told
    low, high = plain.pixel_range()
    assert f"--pixel-range {low:g},{high:g} " in told


def test_values_that_are_only_saturated_or_few_are_not_told() -> None:
    saturated = np.minimum(RAMP * 22, 65535).astype(np.uint16)
    two = np.where(RAMP < 1500, 0, 65535).astype(np.uint16)
    depths = Depths()
    for image in (saturated, two, RAMP.astype(np.uint16)):
        depths.add(deep_pixels(png(image)), "a.png")
    assert depths.stretched() == "" and depths.apart == {}
