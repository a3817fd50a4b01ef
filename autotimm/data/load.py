"""Makes a sample from an image's bytes and its record; this runs in a stream's workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from autotimm.augmentation.copy_paste import paste
from autotimm.augmentation.custom import Transforms, custom_sample
from autotimm.augmentation.presets import Augmentation
from autotimm.augmentation.sample import Sample, evaluation_sample, training_sample
from autotimm.data.collate import target
from autotimm.images.decode import DataError, decode_image
from autotimm.structures import InputError, PixelRange, Record


class _Options(TypedDict):
    resize: str
    fill: tuple[int, int, int]
    with_masks: bool
    interpolation: str


@dataclass(frozen=True, slots=True)
class Load:
    """Decodes an image and places it on the canvas.

    A class rather than a closure, because spawned workers have to unpickle it.

    Attributes:
        labels: category id -> label.
        canvas: height and width.
        vary: the augmentation; None for evaluation.
        resize: one of ``transforms.RESIZES``.
        fill: colour of the canvas, R, G and B.
        with_masks: whether to crop the masks.
        interpolation: one of ``transforms.INTERPOLATIONS``.
        pixel_range: what becomes black and white in images of more than 8 bits a channel.
    """

    labels: dict[int, int]
    canvas: tuple[int, int]
    vary: Augmentation | Transforms | None
    resize: str
    fill: tuple[int, int, int]
    with_masks: bool
    interpolation: str = "bilinear"
    pixel_range: PixelRange = None

    def __call__(
        self,
        data: bytes | memoryview,
        record: Record,
        rng: np.random.Generator,
        canvas: tuple[int, int] | None = None,
        other: tuple[bytes | memoryview, Record] | None = None,
    ) -> Sample:
        """Makes the sample.

        Args:
            data: the image file's bytes.
            record: the image's record.
            rng: the source of all random numbers.
            canvas: height and width of the step's canvas; None for the default.
            other: the bytes and record of an image whose instances to paste, with an
                ``Augmentation`` only. A damaged one is ignored here, and reported when it is read
                as a sample itself.

        Raises:
            DataError: the image or an annotation cannot be used.
        """
        image = decode_image(data, record["width"], record["height"], self.pixel_range)
        given = (image, record, self.labels, canvas or self.canvas)
        how = _Options(
            resize=self.resize,
            fill=self.fill,
            with_masks=self.with_masks,
            interpolation=self.interpolation,
        )
        if self.vary is None:
            sample = evaluation_sample(*given, **how)
            sample.target = target(record, self.labels)
            return sample
        if isinstance(self.vary, Augmentation):
            sample = training_sample(*given, self.vary, rng, **how)
            if other is None:
                return sample
            try:
                pasted, known = other
                image = decode_image(pasted, known["width"], known["height"], self.pixel_range)
                given = (image, known, self.labels, canvas or self.canvas)
                second = training_sample(*given, self.vary, rng, **how)
            except DataError:
                return sample
            except InputError as error:
                raise InputError(f"to paste {other[1]['file_name']}: {error}") from error
            return paste(sample, second, rng)
        return custom_sample(*given, self.vary, rng, **how)
