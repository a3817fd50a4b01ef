"""Opens shards as a decoded ``webdataset`` pipeline, for users who compose their own.

webdataset's ``.decode()`` unpickles members of a tar, and webdataset opens URLs with a shell. This
module uses neither: it downloads shards with ``ShardSource`` and decodes images itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from autotimm.files.urls import locate
from autotimm.format.manifest import MANIFEST
from autotimm.format.record import checked_record
from autotimm.images.decode import DataError, decode_image
from autotimm.streaming.layout import detect_layout
from autotimm.streaming.shards import ShardSource
from autotimm.structures import InputError, PixelRange, World

if TYPE_CHECKING:
    import webdataset


def webdataset_pipeline(
    data_dir: str | Path,
    split: str,
    shuffle: int = 0,
    *,
    seed: int = 0,
    world: World | None = None,
    cache_dir: str | Path | None = None,
) -> webdataset.WebDataset:
    """Opens a split of a shard folder or URL as a ``webdataset.WebDataset``.

    Its samples are ``{"__key__": str, "image": [h, w, 3] uint8 RGB, "record": dict}``; continue
    with ``.map(...)``, ``.batched(...)`` and so on. The pipeline distributes whole shards among
    ranks, then among workers, so ranks may get unequal numbers of samples; ``StreamLoader`` gives
    every rank the same number.

    Args:
        data_dir: the folder or URL.
        split: such as "train".
        shuffle: samples in webdataset's shuffle buffer; 0 keeps the order of samples and shards.
        seed: of the shuffling. Every epoch of one pipeline gets another order (in a DataLoader:
            only with persistent workers).
        world: this rank and the number of ranks.
        cache_dir: the folder for shards from a URL; by default in the user's cache folder.

    Raises:
        InputError: the folder or URL holds no shards, or they are damaged.
    """
    import webdataset

    location = locate(data_dir)
    if location.folder is not None and not (location.folder / MANIFEST).is_file():
        raise InputError(
            f"{location.folder}: not a folder of shards (no {MANIFEST}): run autotimm-shard"
        )
    source = ShardSource(detect_layout(location), split, cache_dir)
    shards = _LocalShards(source, seed if shuffle else None, world or World())
    pipeline = webdataset.WebDataset(
        ["the stage below"],
        nodesplitter=None,
        workersplitter=None,
        shardshuffle=False,
        empty_check=False,  # a rank or worker may have no shard
    )
    pipeline.pipeline[0] = shards  # replaces webdataset's list of URLs
    if shuffle:
        # webdataset's plain shuffle gives the same order in every epoch.
        pipeline = pipeline.compose(webdataset.detshuffle(bufsize=shuffle, seed=seed))
    return pipeline.map(partial(_decoded, pixel_range=source.pixel_range()))


class _LocalShards(IterableDataset):
    """Yields this worker's shards in the form that webdataset expects, downloading each in turn."""

    def __init__(self, source: ShardSource, seed: int | None, world: World) -> None:
        super().__init__()
        self._source, self._seed, self._world = source, seed, world
        self._epoch = 0

    def __iter__(self) -> Iterator[dict[str, str]]:
        order = np.arange(len(self._source.shard_sizes))
        if self._seed is not None:
            np.random.default_rng((self._seed, self._epoch)).shuffle(order)
        self._epoch += 1
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for shard in order[self._world.rank :: self._world.size][worker::workers]:
            # webdataset takes a plain path with a colon for a URL.
            yield {"url": f"file:{self._source.path(int(shard)).resolve()}"}


def _decoded(sample: dict[str, Any], pixel_range: PixelRange) -> dict[str, Any]:
    key = sample["__key__"]
    where = f"{sample['__url__'].removeprefix('file:')}: sample {key!r}"
    if "json" not in sample:
        raise DataError(f"{where} has no .json")
    record = checked_record(sample["json"], where)
    images = [k for k in sample if not k.startswith("__") and k != "json"]
    if len(images) != 1:
        raise DataError(f"{where} has {len(images)} images, not 1")
    try:
        image = decode_image(sample[images[0]], record["width"], record["height"], pixel_range)
    except DataError as error:
        raise DataError(f"{where} ({record['file_name']}): {error}") from error
    return {"__key__": key, "image": image, "record": record}
