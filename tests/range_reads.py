"""Loaders over painted shards whose batches are numbers, for the tests of byte ranges."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from servers import Server

from autotimm.files.retry import Retry
from autotimm.streaming.dataset import SampleStream
from autotimm.streaming.loader import StreamLoader
from autotimm.structures import World

QUICK = Retry(attempts=3, wait=0.01)
IMAGES, SHARD = 48, 4  # of the shards of conftest.py


def tars(server: Server) -> int:
    """The bytes of tars that were sent."""
    return sum(size for name, size in server.sent.items() if name.endswith(".tar"))


def data_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("train*.tar"))


def key(data: Any, record: Any, rng: np.random.Generator) -> tuple[int, int, float]:
    return record["image_id"], zlib.crc32(data), rng.random()


def pair(*given: Any, other: Any = None) -> Any:
    return key(*given), other and key(*other, given[-1])


def same(samples: list[Any], padding: list[bool]) -> list[Any]:
    return samples


def loader(
    source: Any, workers: int = 0, world: World | None = None, paired: float = 0.0
) -> StreamLoader:
    load = pair if paired else key
    stream = SampleStream(
        source,
        load,
        same,
        world=world or World(),
        batch_size=4,
        seed=4,
        shuffle=True,
        paired=paired,
    )
    context = "fork" if workers else None
    return StreamLoader(stream, num_workers=workers, multiprocessing_context=context)
