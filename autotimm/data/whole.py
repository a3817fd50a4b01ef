"""Images in their own size, for prediction in tiles or of mirrored images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from autotimm.data.collate import given_ids
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.data.loaders import evaluation_run
from autotimm.images.decode import decode_image
from autotimm.streaming.dataset import SampleStream
from autotimm.streaming.loader import StreamLoader
from autotimm.structures import PixelRange, Record

_SMALL = 2**22  # pixels, of the images that wait as pixels: 12 MB each


class WholeImages(InstanceSegmentationDataModule):
    """A data module whose batches for prediction hold images in their own pixels.

    A batch is a dict: ``pixels``, :class:`Pictures` of B arrays [H, W, 3] uint8; ``image_id`` [B];
    ``padding`` [B]; ``given_id`` as in :class:`autotimm.structures.Batch`.
    """

    def predict_dataloader(self) -> StreamLoader:
        """The images of ``test_split`` in the natural order."""
        split, run = self._splits.evaluated("test", self.settings), evaluation_run(self.trainer)
        stream = SampleStream(
            self._splits.measured(split),
            partial(_decoded, pixel_range=self.preprocessing.pixel_range),
            _together,
            world=run.world,
            batch_size=self.settings.val_batch_size,
            seed=self.settings.seed,
            pad=True,
            max_corrupt=self.settings.max_corrupt,
            threads=torch.get_num_threads(),
        )
        loader = StreamLoader(
            stream,
            finish=lambda batch: batch,
            num_workers=self.settings.num_workers,
            prefetch_factor=self.settings.prefetch_factor,
            persistent_workers=False,
            pin_memory=False,
        )
        self._loaders.keep("predict", loader)
        return loader

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Leaves the images as they are; the model normalises the parts that it cuts out."""
        return batch


class Pictures:
    """The images of a batch; the large ones are decoded when they are asked for, one by one.

    A worker has decoded them before, to find those that cannot be used. But their pixels would take
    too much memory where several batches wait.
    """

    def __init__(self, images: list[np.ndarray | Callable[[], np.ndarray]]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[np.ndarray]:
        for image in self._images:
            yield image if isinstance(image, np.ndarray) else image()


def _decoded(
    data: bytes | memoryview, record: Record, _: np.random.Generator, *, pixel_range: PixelRange
) -> tuple[np.ndarray | Callable[[], np.ndarray], Record]:
    size = record["width"], record["height"]
    pixels = decode_image(data, *size, pixel_range)
    if pixels.size // 3 <= _SMALL:
        return pixels, record
    return partial(decode_image, bytes(data), *size, pixel_range), record


def _together(samples: list[tuple[Any, Record]], padding: list[bool]) -> dict[str, Any]:
    records = [record for _, record in samples]
    return {
        "pixels": Pictures([pixels for pixels, _ in samples]),
        "image_id": torch.tensor([record["image_id"] for record in records]),
        "padding": torch.tensor(padding),
        **given_ids(records),
    }
