"""The ground truth of a split, wherever it lies, and its images drawn beside what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autotimm import visualize
from autotimm.coco.checks import Problems
from autotimm.coco.index import shown_names
from autotimm.coco.truths import truths
from autotimm.evaluation.ground_truth import of_records
from autotimm.images.decode import DataError, decode_image
from autotimm.streaming.store import Source
from autotimm.structures import PixelRange, Record


class Truth:
    """A split's ground truth, and where its images are.

    Args:
        source: the split.
        pixel_range: what becomes black and white in images of more than 8 bits a channel, where
            they are drawn; None for the source's own.

    Attributes:
        truth: what is to be found.
    """

    def __init__(self, source: Source, pixel_range: PixelRange = None) -> None:
        places = [
            (shard, index)
            for shard, size in enumerate(source.shard_sizes.tolist())
            for index in range(size)
        ]
        problems = Problems()
        problems.update(source.odd)
        records = [source.record(*place, problems) for place in places]
        self.truth = of_records(records, source.categories, source.where(0), problems)
        self._source = source
        self._pixel_range = pixel_range
        self._pictures: dict[int, tuple[visualize.Picture, tuple[int, int], Record]] = {}
        self._names = shown_names(source.categories)
        self._places = {r["image_id"]: p for r, p in zip(records, places, strict=True)}

    @property
    def content(self) -> dict[str, Any]:
        """Of a COCO annotation file that says the same."""
        return self.truth.content()

    def pair(
        self, image_id: int, found: Sequence[dict[str, Any]], annotation_id: int | None = None
    ) -> tuple[visualize.Picture, visualize.Picture]:
        """An image with what was found in it, and with what is there, 640 pixels long.

        Args:
            image_id: of the image.
            found: entries of a COCO results file, of this image and as many as are to be drawn.
            annotation_id: the one annotation to draw; None for all.

        Raises:
            DataError: the image cannot be used; names it.
        """
        # Kept, at 640 pixels: the worst images are often those of suspect labels, too.
        if image_id not in self._pictures:
            self._pictures[image_id] = self._picture(image_id)
        picture, size, record = self._pictures[image_id]
        there = [one for one in truths(record) if annotation_id in (None, one["id"])]
        return self._drawn(picture, size, found), self._drawn(picture, size, there)

    def _picture(self, image_id: int) -> tuple[visualize.Picture, tuple[int, int], Record]:
        """An image at 640 pixels, its height and width, and its record."""
        data, record = self._source.read(*self._places[image_id])
        try:
            if self._pixel_range is None:
                self._pixel_range = self._source.pixel_range()
            image = decode_image(data, record["width"], record["height"], self._pixel_range)
        except DataError as error:
            raise DataError(f"{record['file_name']}: {error}") from error
        height, width = image.shape[:2]
        picture = visualize.resized(image, visualize.SIDE / max(height, width))
        return picture, (height, width), record

    def _drawn(
        self, picture: visualize.Picture, size: tuple[int, int], instances: Sequence[Any]
    ) -> visualize.Picture:
        boxes = np.array([one["bbox"] for one in instances], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        label = {one.id: k for k, one in enumerate(self._source.categories)}
        rles = [one["segmentation"] for one in instances if "segmentation" in one]
        return visualize.draw_instances(
            picture,
            boxes,
            [label[one["category_id"]] for one in instances],
            [one["score"] for one in instances] if instances and "score" in instances[0] else None,
            rles if len(rles) == len(instances) else None,
            class_names=self._names,
            size=size,
        )
