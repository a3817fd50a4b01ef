"""Sound documents and files that the fuzz tests break, and the folders that they lie in."""

from __future__ import annotations

import atexit
import functools
import io
import json
import shutil
import struct
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as pycoco

HEIGHT, WIDTH = 12, 16
NAMES = ("a.jpg", "b.png", "sub/c.png")
CATEGORIES = [
    {"id": 3, "name": "disc", "supercategory": "shape"},
    {"id": 7, "name": "star", "frequency": "r"},
    {"id": "x9", "name": "text id"},
    {"id": 2**64 + 3, "name": "long id"},
]

coordinates = st.integers(-2, 20) | st.floats(-2, 20, width=32)


@functools.cache
def folder(name: str) -> Path:
    """A folder of this process, by name; it goes when the process ends."""
    made = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@functools.cache
def images() -> Path:
    """The folder of images that annotation files here speak of."""
    root = folder("images")
    (root / "sub").mkdir()
    for name in NAMES:
        (root / name).write_bytes(picture("JPEG" if name.endswith("jpg") else "PNG"))
    return root


@functools.cache
def picture(kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """An image of noise, encoded."""
    chance = np.random.default_rng(5)
    if mode == "I;16":
        pixels: Any = chance.integers(0, 4096, (HEIGHT, WIDTH), np.uint16)
    elif mode == "F":
        pixels = chance.random((HEIGHT, WIDTH), np.float32)
    else:
        pixels = chance.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    image = Image.fromarray(pixels)
    if image.mode != mode and mode not in ("I;16", "F"):
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rle(mask: np.ndarray) -> dict[str, Any]:
    """pycocotools' compressed RLE of a dense mask."""
    found = pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def runs(mask: np.ndarray) -> list[int]:
    """The lengths of a mask's runs down its columns, zeros first."""
    edges = np.flatnonzero(np.diff(mask.ravel(order="F").astype(int), prepend=0))
    return np.diff(np.concatenate(([0], edges, [mask.size]))).tolist()


@st.composite
def dense(draw: st.DrawFn, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A mask [height, width] of a few rectangles."""
    mask = np.zeros((height, width), np.uint8)
    for _ in range(draw(st.integers(0, 3))):
        y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        mask[y : draw(st.integers(y, height)), x : draw(st.integers(x, width))] ^= 1
    return mask


@st.composite
def segmentations(draw: st.DrawFn) -> Any:
    """A segmentation in any shape that is read."""
    kind = draw(st.sampled_from(("polygons", "polygons", "rle", "runs", "pairs", "text", "turned")))
    if kind in ("polygons", "pairs", "text"):
        count = draw(st.integers(1, 2))
        points = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=5)
        polygons: Any = [draw(points) for _ in range(count)]
        if kind == "pairs":
            return [[[*point] for point in polygon] for polygon in polygons]
        flat = [[v for point in polygon for v in point] for polygon in polygons]
        return json.dumps(flat) if kind == "text" else flat
    mask = draw(dense())
    if kind == "rle":
        return rle(mask)
    if kind == "turned":
        return rle(mask) | {"size": [WIDTH, HEIGHT]}
    return {"size": [HEIGHT, WIDTH], "counts": runs(mask)}


@st.composite
def annotations(draw: st.DrawFn, id_: int) -> dict[str, Any]:
    """A sound annotation of one of the images."""
    return {
        "id": id_,
        "image_id": draw(st.sampled_from((1, 2, "img3"))),
        "category_id": draw(st.sampled_from([one["id"] for one in CATEGORIES])),
        "bbox": draw(st.lists(coordinates, min_size=4, max_size=4)),
        "area": draw(st.floats(0, 100, width=32)),
        "iscrowd": draw(st.sampled_from((0, 0, 1))),
        "segmentation": draw(segmentations()),
        **draw(st.sampled_from(({}, {}, {"ignore": 1}, {"score": float("nan")}))),
    }


@st.composite
def coco(draw: st.DrawFn) -> dict[str, Any]:
    """A sound annotation file."""
    ids = (1, 2, "img3")
    size = {"width": WIDTH, "height": HEIGHT}
    lists = {"neg_category_ids": [3], "not_exhaustive_category_ids": ["x9"]}
    return {
        "info": {"year": 2026},
        "images": [
            {"id": id_, "file_name": name, **size, **(lists if draw(st.booleans()) else {})}
            for id_, name in zip(ids, NAMES, strict=True)
        ],
        "annotations": [draw(annotations(n)) for n in range(1, draw(st.integers(2, 5)))],
        "categories": CATEGORIES,
    }


@st.composite
def results(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A sound results file for such an annotation file."""
    found = []
    for n in range(draw(st.integers(1, 3))):
        one = draw(annotations(n))
        kept = {key: one[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
        found.append(kept | {"score": draw(st.floats(0, 1, width=32))})
    return found


def record(**changes: Any) -> dict[str, Any]:
    """A sound record, as a shard has it."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:8, 3:9] = 1
    annotation = {
        "id": 1,
        "category_id": 3,
        "bbox": [3.0, 2.0, 6.0, 6.0],
        "area": 36.0,
        "iscrowd": 0,
        "segmentation": rle(mask),
        "polygons": [[3.0, 2.0, 9.0, 2.0, 9.0, 8.0, 3.0, 8.0]],
    }
    unmasked = {key: annotation[key] for key in ("id", "category_id", "bbox", "area", "iscrowd")}
    whole = {
        "image_id": 1,
        "file_name": "a.png",
        "width": WIDTH,
        "height": HEIGHT,
        "annotations": [annotation, annotation | {"id": 2, "given_bbox": [3.0, 2.0, 0.0, 6.0]}],
        "given_id": "img1",
        "unmasked": [unmasked | {"id": 3}],
        "neg_category_ids": [7],
    }
    return whole | changes


def tar(members: list[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tiff(entries: list[tuple[int, int, int, int]], body: bytes = b"", big: bool = False) -> bytes:
    """A TIFF of one directory: tag, type, count and value (or offset) of each entry."""
    count, entry = ("<Q", "<HHQQ") if big else ("<H", "<HHII")
    wide = 2**64 if big else 2**32
    data = b"II\x2b\0\x08\0\0\0" + struct.pack("<Q", 16) if big else b"II\x2a\0\x08\0\0\0"
    data += struct.pack(count, len(entries))
    for tag, kind, number, value in entries:
        data += struct.pack(entry, tag, kind, number % wide, value % wide)
    return data + bytes(8 if big else 4) + body
