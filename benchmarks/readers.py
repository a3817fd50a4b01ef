"""One reader of raw samples, timed: ``python readers.py READER FOLDER ORDER [options]``.

A sample is an image file's bytes and its record's JSON, neither decoded. Whatever a reader hands
out, one byte of each of its pages is looked at, so that none gets away with a promise. Files,
tarfile and webdataset read what autotimm-shard wrote. No peer's code here imports autotimm.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import measured

_PAGE = 4096
Sample = tuple[Any, Any]
"""The bytes of an image file and of its record."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("order", choices=["sequential", "shuffled"])
    parser.add_argument("--split", default="train")
    parser.add_argument("--seconds", type=float, help="read on until then; default: one cold pass")
    options = parser.parse_args()
    start = time.perf_counter()
    opened = READERS[options.reader](options.folder, options.split, options.order == "shuffled")
    opening = time.perf_counter() - start

    def once() -> int:
        count = 0
        for image, text in opened():
            touch(image)
            touch(text)
            count += 1
        return count

    def work() -> int:
        end = time.perf_counter() + (options.seconds or 0)
        images = once()
        while time.perf_counter() < end:
            images += once()
        return images

    if options.seconds:
        once()
    measured(work, opening=opening)


def touch(data: Any) -> None:
    memoryview(data)[::_PAGE].tobytes()


Opened = Callable[[], Iterator[Sample]]
"""A pass over all samples, the next epoch at every call."""


def files(folder: Path, _split: str, shuffle: bool) -> Opened:
    """Plain files: open and read."""
    names = sorted(str(p.with_suffix("")) for p in folder.glob("*.json"))
    images = {str(p.with_suffix("")): str(p) for p in folder.iterdir() if p.suffix != ".json"}

    def passing() -> Iterator[Sample]:
        if shuffle:
            random.shuffle(names)
        for name in names:
            with open(images[name], "rb") as image, open(f"{name}.json", "rb") as text:  # noqa: PTH123
                yield image.read(), text.read()

    return passing


def tar(folder: Path, split: str, _shuffle: bool) -> Opened:
    """Python's tarfile, shard after shard: it knows no other order."""
    import tarfile

    def passing() -> Iterator[Sample]:
        for path in sorted(folder.glob(f"{split}-*.tar")):
            with tarfile.open(path, "r:") as archive:
                pair = []
                for member in archive:
                    content = archive.extractfile(member)
                    assert content is not None
                    pair.append(content.read())
                    if len(pair) == 2:
                        yield pair[0], pair[1]
                        pair = []

    return passing


def webdataset(folder: Path, split: str, shuffle: bool) -> Opened:
    """webdataset's iterator, shuffled as its documentation has it: shards, then a buffer."""
    import webdataset as wds

    shards = [f"file:{p.resolve()}" for p in sorted(folder.glob(f"{split}-*.tar"))]
    dataset = wds.WebDataset(shards, shardshuffle=len(shards) if shuffle else False)
    if shuffle:
        dataset = dataset.shuffle(1000)

    def passing() -> Iterator[Sample]:
        for sample in dataset:
            yield next(sample[k] for k in ("jpg", "jpeg", "png") if k in sample), sample["json"]

    return passing


def mosaicml(folder: Path, _split: str, shuffle: bool, validate: str | None = None) -> Opened:
    """mosaicml-streaming's StreamingDataset over a local folder."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    dataset = StreamingDataset(
        local=str(folder), shuffle=shuffle, batch_size=32, validate_hash=validate
    )

    def passing() -> Iterator[Sample]:
        for sample in dataset:
            yield sample["jpg"], sample["json"]

    return passing


def litdata(folder: Path, _split: str, shuffle: bool) -> Opened:
    """litdata's StreamingDataset over a local folder."""
    from litdata import StreamingDataset

    dataset = StreamingDataset(str(folder), shuffle=shuffle)

    def passing() -> Iterator[Sample]:
        for sample in dataset:
            yield sample["jpg"], sample["json"]

    return passing


def autotimm(folder: Path, split: str, shuffle: bool) -> Opened:
    """``ShardSource.raw`` in the order of an epoch; every sample is checked."""
    from autotimm.streaming.order import EpochOrder
    from autotimm.streaming.shards import ShardSource

    source = ShardSource(str(folder), split)
    epoch = iter(range(2**31))

    def passing() -> Iterator[Sample]:
        order = EpochOrder(source.shard_sizes, seed=0, epoch=next(epoch), shuffle=shuffle)
        for first in range(0, order.samples, 32):
            positions = np.arange(first, min(first + 32, order.samples))
            for shard, index in zip(*(a.tolist() for a in order.locate(positions)), strict=True):
                yield source.raw(shard, index)

    return passing


def verified(folder: Path, split: str, shuffle: bool) -> Opened:
    """``autotimm-shard --verify``, then the samples."""
    from autotimm.sharding.verify import verify

    def passing() -> Iterator[Sample]:
        if faults := verify(folder).faults:
            raise ValueError("; ".join(map(str, faults)))
        yield from autotimm(folder, split, shuffle)()

    return passing


READERS: dict[str, Callable[[Path, str, bool], Opened]] = {
    "files": files,
    "tarfile": tar,
    "webdataset": webdataset,
    "mosaicml": mosaicml,
    "mosaicml-hashes": partial(mosaicml, validate="xxh64"),
    "litdata": litdata,
    "autotimm": autotimm,
    "autotimm-verify": verified,
}


if __name__ == "__main__":
    main()
