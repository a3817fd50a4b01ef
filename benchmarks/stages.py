"""What an image costs our writer, stage by stage: each stage alone, over all images."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson

from autotimm.coco import index as coco
from autotimm.format.index import checksum
from autotimm.images import inspect
from autotimm.sharding.tar_writer import tar_header

T = TypeVar("T")
_CHUNK = 64  # images held at a time, as a writer would


def stages(
    annotations: Path, folder: Path, out: Path, samples_per_shard: int
) -> dict[str, list[float]]:
    """CPU and wall milliseconds an image of each stage."""
    spent: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[..., T], *given: Any) -> T:
        start, cpu = time.perf_counter(), time.process_time()
        result = work(*given)
        total = spent.setdefault(name, [0.0, 0.0])
        total[0] += time.process_time() - cpu
        total[1] += time.perf_counter() - start
        return result

    index = timed("annotation file parsed and checked", coco.load, annotations, folder)
    count = len(index)
    for first in range(0, count, samples_per_shard):
        with (out / f"{first}.tar").open("wb", buffering=0) as file:
            for at in range(first, min(first + samples_per_shard, count), _CHUNK):
                part = range(at, min(at + _CHUNK, first + samples_per_shard, count))
                data = timed("image files read", _read, [index.image_file(i) for i in part])
                timed("image headers inspected", _each, inspect.inspect, data)
                records = timed("records checked, polygons to RLE", _each, index.record, part)
                texts = timed("JSON made", _each, orjson.dumps, records)
                pieces = timed("tar headers", _pieces, data, texts)
                timed("XXH3", _each, checksum, data + texts)
                timed("sha256", _sha256, pieces)
                timed("written to the page cache", _write, file.fileno(), pieces)
            timed("fsync", os.fsync, file.fileno())
    return {name: [1e3 * seconds / count for seconds in both] for name, both in spent.items()}


def _read(paths: list[str]) -> list[bytes]:
    data = []
    for path in paths:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (a Path takes longer)
            data.append(file.read())
    return data


def _each(work: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    return [work(item) for item in items]


def _pieces(data: list[bytes], texts: list[bytes]) -> list[bytes]:
    pieces = []
    for i, (image, text) in enumerate(zip(data, texts, strict=True)):
        pieces += [tar_header(f"{i:012d}.jpg", len(image)), image, b"\0" * (-len(image) % 512)]
        pieces += [tar_header(f"{i:012d}.json", len(text)), text, b"\0" * (-len(text) % 512)]
    return pieces


def _sha256(pieces: list[bytes]) -> None:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)


def _write(file: int, pieces: list[bytes]) -> None:
    for start in range(0, len(pieces), 6):
        os.writev(file, pieces[start : start + 6])
