"""Draws training samples under several augmentations side by side.

The samples come from the data module's own training batches, so that the preview shows the very
pixels, boxes, masks and labels that a model is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from autotimm import visualize
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.models import paste
from autotimm.structures import RLE

_GAP = 8  # pixels around every picture
_TITLE = 28  # pixels; height of the title above a column
_LETTERS = 18  # pixels; height of the letters of a title that fits above its column


def sheet(
    columns: Mapping[str, InstanceSegmentationDataModule],
    samples: int = 4,
    cell: int = 480,
    left_out: set[str] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Draws training samples: a row for each sample, a column for each data module.

    Args:
        columns: title -> data module. Modules with the same data set, seed and ``aspect_buckets``
            show the same samples.
        samples: the number of rows; there are fewer if an epoch has fewer samples.
        cell: the width of the widest picture in pixels; all are drawn larger or smaller by the same
            factor.
        left_out: gets the images that were to be drawn and cannot be used, with the reason; as many
            as the ``max_corrupt`` of the data modules allows.

    Returns:
        The picture [H, W, 3] uint8 RGB, and the file names of the images in the first column.

    Raises:
        InputError: the data cannot be used.
    """
    columns_of_samples, names = [], []
    for number, data in enumerate(columns.values()):
        data.check("fit")
        try:
            found = list(islice(_samples(data, left_out), samples))
        finally:
            data.teardown()
        columns_of_samples.append(found)
        names += [sample.name for sample in found] if number == 0 else []
    widest = max(one.pixels.shape[1] for column in columns_of_samples for one in column)
    drawn = [[one.drawn(cell / widest) for one in column] for column in columns_of_samples]
    return _laid_out(list(columns), drawn), names


@dataclass(frozen=True, slots=True)
class _Sample:
    """A training sample: its image [H, W, 3] uint8, its instances, and the name of its file."""

    pixels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: list[RLE] | None
    class_names: list[str]
    name: str

    def drawn(self, factor: float) -> visualize.Picture:
        """A picture that is ``factor`` times as large as the image."""
        return visualize.draw_instances(
            visualize.resized(self.pixels, factor),
            self.boxes,
            self.labels,
            masks=self.masks,
            class_names=self.class_names,
            size=self.pixels.shape[:2],
        )


def _samples(data: InstanceSegmentationDataModule, left_out: set[str] | None) -> Iterator[_Sample]:
    """Yields an epoch's training samples."""
    loader, seen = data.train_dataloader(), set()
    for batch in loader:
        if left_out is not None:
            left_out.update(loader.skipped.values())
        for i, name in enumerate(batch["file_name"]):
            if int(batch["image_id"][i]) in seen:
                continue  # it stands for one that was skipped
            seen.add(int(batch["image_id"][i]))
            used = batch["labels"][i] >= 0
            boxes = batch["boxes"][i][used]
            pixels = _pixels(batch["image"][i], data)
            crops = batch["masks"][i][used].float() if "masks" in batch else None
            yield _Sample(
                pixels,
                boxes.numpy(),
                batch["labels"][i][used].numpy(),
                None if crops is None else paste.encode(crops, boxes, *pixels.shape[:2]),
                data.class_names,
                name,
            )


def _pixels(image: torch.Tensor, data: InstanceSegmentationDataModule) -> np.ndarray:
    """Converts [3, H, W] to [H, W, 3] uint8; undoes the normalising by a user's own pipeline."""
    if image.dtype != torch.uint8:
        wanted: Any = data.preprocessing
        mean, std = (torch.tensor(v)[:, None, None] for v in (wanted.mean, wanted.std))
        image = (255 * (image * std + mean)).round().clamp(0, 255).to(torch.uint8)
    return image.permute(1, 2, 0).numpy()


def _laid_out(titles: list[str], columns: list[list[np.ndarray]]) -> np.ndarray:
    """Arranges pictures in a grid on white, with titles above the columns."""
    widths = [max(one.shape[1] for one in column) for column in columns]
    heights = [max(one.shape[0] for one in row) for row in zip(*columns, strict=True)]
    lefts = np.cumsum([_GAP, *(w + _GAP for w in widths)])
    tops = np.cumsum([_GAP + _TITLE, *(h + _GAP for h in heights)])
    page = np.full((tops[-1], lefts[-1], 3), 255, np.uint8)
    for left, column in zip(lefts, columns, strict=False):
        for top, one in zip(tops, column, strict=False):
            page[top : top + one.shape[0], left : left + one.shape[1]] = one
    written = Image.fromarray(page)
    pen = ImageDraw.Draw(written)
    for left, width, title in zip(lefts, widths, titles, strict=False):
        middle = (float(left + width / 2), _GAP / 2 + _TITLE / 2)
        wide = ImageFont.load_default(_LETTERS).getlength(title)
        font = ImageFont.load_default(max(int(_LETTERS * min(width / wide, 1)), 6))
        pen.text(middle, title, fill=(30, 30, 30), font=font, anchor="mm")
    return np.array(written)
