"""Image bytes and record -> sample: what a stream's workers do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from autotimm.data import transforms
from autotimm.data.augmentation import Augmentation
from autotimm.data.collate import target
from autotimm.data.custom import Transforms, custom_sample
from autotimm.streaming.decode import decode_image
from autotimm.structures import Record


class _Options(TypedDict):
    resize: str
    fill: tuple[int, int, int]
    with_masks: bool
    interpolation: str


@dataclass(frozen=True, slots=True)
class Load:
    """Decodes an image and lays it on the canvas.

    A class rather than a closure, so that workers that are spawned can be sent it.

    Attributes:
        labels: category id -> label.
        canvas: height and width.
        vary: how images are varied; None for evaluation.
        resize: one of ``transforms.RESIZES``.
        fill: colour of the canvas.
        with_masks: whether to crop the masks.
        interpolation: one of ``transforms.INTERPOLATIONS``.
    """

    labels: dict[int, int]
    canvas: tuple[int, int]
    vary: Augmentation | Transforms | None
    resize: str
    fill: tuple[int, int, int]
    with_masks: bool
    interpolation: str = "bilinear"

    def __call__(
        self,
        data: bytes | memoryview,
        record: Record,
        rng: np.random.Generator,
        canvas: tuple[int, int] | None = None,
    ) -> transforms.Sample:
        """Makes the sample, on a canvas of its step if there is one.

        Raises:
            DataError: the image or an annotation cannot be used.
        """
        image = decode_image(data, record["width"], record["height"])
        given = (image, record, self.labels, canvas or self.canvas)
        how = _Options(
            resize=self.resize,
            fill=self.fill,
            with_masks=self.with_masks,
            interpolation=self.interpolation,
        )
        if self.vary is None:
            sample = transforms.evaluation_sample(*given, **how)
            sample.target = target(record, self.labels)
            return sample
        if isinstance(self.vary, Augmentation):
            return transforms.training_sample(*given, self.vary, rng, **how)
        return custom_sample(*given, self.vary, rng, **how)
