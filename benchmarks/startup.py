"""What it costs to begin: opening, resuming, planning; and how well the order mixes.

    python startup.py FOLDER

FOLDER becomes a shard folder of COCO's size and one of a million samples: true manifests and
indices beside tars that are holes, as nothing here reads an image.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from order import buffered_order, neighbours, our_order

from autotimm.coco.index import Category
from autotimm.format.index import INDEX_DTYPE, index_bytes
from autotimm.format.manifest import MANIFEST, Manifest, Shard, SplitInfo
from autotimm.format.manifest_file import write_manifest
from autotimm.streaming.buckets import Canvases
from autotimm.streaming.dataset import SampleStream
from autotimm.streaming.loader import StreamLoader
from autotimm.streaming.order import EpochOrder, batch_positions
from autotimm.streaming.store import Source, open_source
from autotimm.structures import World

COCO = [1003] * 117 + [936]  # 118,287 images in 118 shards
MILLION = [1000] * 1000
BILLION = 10**6  # shards of 1,000
CANVASES = ((640, 640), (512, 640), (640, 512))
_IMAGE, _RECORD = 150_000, 4_000  # bytes
_ROW = 512  # samples: a global batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    coco, million, billion = COCO, MILLION, BILLION
    if options.quick:
        coco, million, billion = COCO[:12], MILLION[:10], 1000
    for name, sizes in (("coco", coco), ("million", million)):
        fabricate(options.folder / name, sizes)
    start = {
        "open COCO's shards, first batch planned": opening(options.folder / "coco", False),
        "the same with every image's size": opening(options.folder / "coco", True),
        "open a million samples, first batch planned": opening(options.folder / "million", False),
        "resume in the middle of a million samples": resuming(options.folder / "million", ()),
        "the same with three aspect buckets": resuming(options.folder / "million", CANVASES),
    }
    print(json.dumps({"start": start, "plan": planning(billion), "order": mixing(np.array(coco))}))


def fabricate(folder: Path, sizes: list[int]) -> None:
    """A shard folder whose tars are holes of the right length."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    shards = []
    for number, samples in enumerate(sizes):
        name = f"train-{number:06d}"
        step = _IMAGE + _RECORD + 2048
        rows = np.zeros(samples, INDEX_DTYPE)
        rows["image_offset"] = np.arange(samples) * step + 512
        rows["image_bytes"], rows["json_bytes"] = _IMAGE, _RECORD
        rows["json_offset"] = rows["image_offset"] + _IMAGE + 1024
        rows["width"], rows["height"] = rng.permuted([[640, 480]] * samples, axis=1).T
        rows["image_id"] = np.arange(samples) + number * samples
        rows["image_xxh3"], rows["json_xxh3"] = rng.integers(0, 2**63, (2, samples))
        content = index_bytes(rows)
        (folder / f"{name}.idx.npy").write_bytes(content)
        size = (samples * step // 10240 + 1) * 10240
        with (folder / f"{name}.tar").open("wb") as file:
            file.truncate(size)
        digest = hashlib.sha256(content).hexdigest()
        shards.append(Shard(f"{name}.tar", samples, size, digest, f"{name}.idx.npy", digest))
    info = SplitInfo(sum(sizes), 7 * sum(sizes), 0, {}, shards)
    write_manifest(folder / MANIFEST, Manifest([Category(1, "class")], {"train": info}))


def opening(folder: Path, sizes: bool) -> list[float]:
    """Milliseconds to open a folder and know what rank 3 of 8 reads first: at first, median."""

    def work() -> None:
        source = open_source(folder, "train")
        if sizes:
            source.image_sizes()
        order = EpochOrder(source.shard_sizes, seed=0, epoch=0, shuffle=True)
        order.locate(batch_positions(0, World(3, 8), 16))

    return milliseconds(work)


def resuming(folder: Path, canvases: Canvases) -> list[float]:
    """Milliseconds from an open source and a checkpoint's state to the first batch's samples."""
    source: Any = Unread(open_source(folder, "train"))

    def loader() -> StreamLoader:
        given = {"world": World(3, 8), "batch_size": 16, "shuffle": True, "canvases": canvases}
        return StreamLoader(SampleStream(source, _no_load, _no_collate, **given))

    state = loader().state_dict()
    state["consumed"] = int(source.shard_sizes.sum()) // 256 * 128

    def work() -> None:
        resumed = loader()
        resumed.load_state_dict(dict(state))
        next(iter(resumed))

    return milliseconds(work)


class Unread:
    """A source whose samples are empty: its order and opening are real."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read(self, shard: int, index: int) -> tuple[bytes, dict[str, Any]]:
        name = f"{index} of {shard}"
        size = {"width": 640, "height": 480}
        return b"", {"file_name": name, "image_id": index, "annotations": [], **size}


def _no_load(*given: Any) -> Any:
    return given[1]


def _no_collate(*given: Any) -> Any:
    return given[0]


def planning(shards: int) -> dict[str, float]:
    """Seconds and MB for the first batch, and one in the middle, of rank 700 of 1,024."""
    sizes = np.full(shards, 1000, np.int64)
    total = int(sizes.sum())

    def work() -> None:
        order = EpochOrder(sizes, seed=0, epoch=0, shuffle=True)
        for consumed in (0, total // 2):
            order.locate(batch_positions(0, World(700, 1024), 8, consumed))

    seconds = milliseconds(work, 3)[1] / 1e3
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"samples": total, "seconds": seconds, "megabytes": peak / 1e6}


def milliseconds(work: Callable[[], None], repeats: int = 9) -> list[float]:
    """Of the first call, and the median of those after it."""
    spent = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        spent.append(1e3 * (time.perf_counter() - start))
    return [spent[0], statistics.median(spent[1:])]


def mixing(sizes: np.ndarray) -> dict[str, list[float]]:
    """How well orders mix: ours, webdataset's buffers over shuffled shards, a perfect shuffle.

    Returns:
        the median distance in the order of samples that are neighbours in their shard, as a share
        of the epoch; the share of neighbours that meet within 100 samples; and from how many shards
        ``_ROW`` samples in a row come, on average.
    """
    total = int(sizes.sum())
    orders = {
        "autotimm": our_order(sizes),
        "webdataset, buffer of 10,000": buffered_order(sizes, 10_000),
        "webdataset, buffer of 1,000": buffered_order(sizes, 1_000),
        "perfect shuffle": np.random.default_rng(1).permutation(total),
    }
    told = {}
    for name, order in orders.items():
        apart = neighbours(order, sizes)
        shards = np.searchsorted(np.cumsum(sizes), order, side="right")
        rows = shards[: total // _ROW * _ROW].reshape(-1, _ROW)
        from_shards = np.mean([len(np.unique(row)) for row in rows])
        told[name] = [np.median(apart) / total, (apart <= 100).mean(), from_shards]
    return {name: [float(value) for value in values] for name, values in told.items()}


if __name__ == "__main__":
    main()
