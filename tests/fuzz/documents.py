"""Documents to try parsers with: sound ones, changed in the ways that files get broken.

A strategy begins with a document that a parser takes, and changes a few of its places: types are
swapped, keys go or come twice, numbers become huge, negative or none, lists nest deep, counts no
longer add up. ``texts`` makes files of them, and cuts, flips and packs their bytes. What no JSON
text can be made of directly (deep nesting, a key twice) stands in a document as a mark.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("hypothesis")  # of the extra dev; every file here imports this one first

from hypothesis import strategies as st

DEPTHS = (5, 200, 990, 1020, 100_000)
_MARK = "@deep{}@"

ODD: list[Any] = [
    *(None, True, False, [], {}, [[]], [{}], {"x": 1, "y": 2}, [None], ["a"]),
    *(0, 1, -1, 7, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1),
    *(2**64, 2**70, 10**9, 10**30, 10**400, -(10**400)),
    *(0.0, -0.0, 0.5, 1e-320, 1e9, 1e15, 1e16, 1.8e19, 1e308, -1e308),
    *(float("nan"), float("inf"), -float("inf")),
    *("", " ", "7", " 7 ", "7.0", "1e3", "1e999", "0x10", "nan", "-1", "true", "null", "[", "[[]]"),
    *("\0", "a\nb", "\x1b[2J", "\ud800", "\udcff", "\u0661", "é", "日本", "x" * 300, "y" * 5000),
    *("../../etc/passwd", "/etc/passwd", "..", ".", "a/../b", "C:\\a.jpg", "http://h/a.jpg?x#y"),
    *("http://[", "b'1'", "b'1', b'2'", 'b"\\d"', "[1, 2]", "0" * 400, "ÿ" * 3),
    *(_MARK.format(depth) for depth in DEPTHS),
]
"""Values that a document has in no place, or in others."""


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a document, its own first."""
    yield path
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*path, key))
    elif isinstance(document, list):
        for number, value in enumerate(document[:40]):
            yield from places(value, (*path, number))


def _at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def _retyped(value: Any) -> Any:
    """The same said in another type."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return str(value)
    if isinstance(value, int):
        return float(value) if abs(value) < 2**1000 else str(value)
    if isinstance(value, str):
        return [*value[:20]]
    if isinstance(value, list):
        return {str(number): one for number, one in enumerate(value)}
    return [*value.values()]


def _scaled(value: Any) -> Any:
    return value * 10**9 if isinstance(value, int | float) and value == value else 10**9


_CHANGES: tuple[Callable[[Any], Any], ...] = (
    _retyped,
    _scaled,
    lambda value: -value if isinstance(value, int | float) else [value],
    lambda value: [value, copy.deepcopy(value)],
    lambda value: [[[value]]],
    lambda value: json.dumps(value, default=str) if not isinstance(value, str) else f"b'{value}'",
    lambda value: [*value, *copy.deepcopy(value)] if isinstance(value, list) else value,
    lambda value: [*reversed(value)] if isinstance(value, list) else value,
    lambda value: value[:-1] if isinstance(value, list | str) else value,
    lambda value: str(value) if isinstance(value, int | float) else value,
)


@st.composite
def mutated(draw: st.DrawFn, sound: st.SearchStrategy[Any], most: int = 4) -> Any:
    """A document of ``sound`` with up to ``most`` of its places changed."""
    document = copy.deepcopy(draw(sound))
    for _ in range(draw(st.integers(0, most))):
        paths = [*places(document)]
        path = draw(st.sampled_from(paths))
        if not path:
            if draw(st.integers(0, 19)) == 0:
                document = copy.deepcopy(draw(st.sampled_from(ODD)))
            continue
        parent, key = _at(document, path[:-1]), path[-1]
        kind = draw(st.sampled_from(("odd", "odd", "change", "drop", "other", "double")))
        if kind == "odd":
            parent[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif kind == "change":
            parent[key] = draw(st.sampled_from(_CHANGES))(parent[key])
        elif kind == "drop":
            del parent[key]
        elif kind == "other":
            parent[key] = copy.deepcopy(_at(document, draw(st.sampled_from(paths))))
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            parent[f"{key}@twice@"] = copy.deepcopy(draw(st.sampled_from(ODD)))
    return document


def nested(document: Any) -> Any:
    """The document for parsers of values: marks become lists in lists, as deep as a parser of JSON
    gives them."""
    if isinstance(document, dict):
        return {key.removesuffix("@twice@"): nested(value) for key, value in document.items()}
    if isinstance(document, list):
        return [nested(value) for value in document]
    for depth in DEPTHS[:-1]:
        if document == _MARK.format(depth):
            value: Any = []
            for _ in range(depth - 1):
                value = [value]
            return value
    return document


def text_of(document: Any) -> str:
    """The document as JSON, with the NaN that Python writes."""
    text = json.dumps(document).replace('@twice@"', '"')
    for depth in DEPTHS:
        text = text.replace(f'"{_MARK.format(depth)}"', "[" * depth + "]" * depth)
    return text


def _zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("a.json"), data)  # of no time
    return buffer.getvalue()


_ENCODINGS: tuple[Callable[[str], bytes], ...] = (
    str.encode,
    str.encode,
    lambda text: b"\xef\xbb\xbf" + text.encode(),
    lambda text: text.encode("utf-16"),
    lambda text: text.encode("utf-16-le"),
    lambda text: text.encode("utf-32"),
    lambda text: gzip.compress(text.encode(), 1, mtime=0),
    lambda text: gzip.compress(text.encode("utf-16"), 1, mtime=0),
    lambda text: _zipped(text.encode()),
)


@st.composite
def texts(draw: st.DrawFn, document: st.SearchStrategy[Any], plain: bool = False) -> bytes:
    """The bytes of a JSON file of a document; ``plain`` keeps to UTF-8 that nothing packs."""
    text = text_of(draw(document))
    encode = str.encode if plain else draw(st.sampled_from(_ENCODINGS))
    return draw(damaged(st.just(encode(text))))


@st.composite
def damaged(draw: st.DrawFn, sound: st.SearchStrategy[bytes], often: bool = False) -> bytes:
    """Bytes, a fifth of them (or ``often`` most) cut, flipped, overwritten, doubled or joined to
    something else."""
    data = bytearray(draw(sound))
    for _ in range(draw(st.integers(0, 4) if often else st.sampled_from((0, 0, 0, 0, 1, 3)))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1) | st.integers(0, min(600, len(data) - 1)))
        kind = draw(st.sampled_from(("cut", "flip", "flip", "set", "zero", "double", "append")))
        if kind == "cut":
            del data[at:]
        elif kind == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            new = draw(st.binary(min_size=1, max_size=8))
            data[at : at + len(new)] = new
        elif kind == "zero":
            data[at : at + 64] = bytes(len(data[at : at + 64]))
        elif kind == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 600))]
        else:
            data += draw(st.binary(max_size=20))
    return bytes(data)
