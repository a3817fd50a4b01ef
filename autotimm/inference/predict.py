"""Detects objects in images of any kind and size, in their own pixels.

Images are fitted to the canvas as in evaluation, so the detections are those whose AP was measured
there. Only the arithmetic may differ: evaluation uses 16 bits on a GPU by default, and this module
only with ``half``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autotimm.coco import masks
from autotimm.inference.ahead import read_ahead
from autotimm.inference.options import Options
from autotimm.inference.predictor import Predictor
from autotimm.structures import Detections, InputError
from autotimm.tasks.detector import ObjectDetector

__all__ = ["Options", "detector_of", "predict", "predictions"]


def predict(
    model: ObjectDetector, images: Any, *, dense: bool = False, **how: Any
) -> list[Detections]:
    """Finds the objects in images of any kind and size.

    Args:
        model: from ``autotimm.load``, on the device that is to run it.
        images: a list of paths, URLs, PIL images or uint8 arrays [H, W, 3] (RGB), or one of them.
        dense: return masks as [N, H, W] uint8 of 0 and 1, which takes N * H * W bytes, instead of
            COCO's RLEs.
        **how: the fields of ``Options``.

    Returns:
        For each image ``boxes`` [N, 4] x1, y1, x2, y2 in its pixels, ``labels`` [N] (indices into
        ``model.class_names``) and ``scores`` [N], best first; from a segmentor also ``rles``, or
        ``masks`` if ``dense``.

    Raises:
        InputError: an image cannot be read (the message names it), or an option cannot be used.
    """
    try:
        options = Options(**how)
    except TypeError as error:
        raise InputError(f"predict(): {error}") from error
    several = isinstance(images, list | tuple) or (
        isinstance(images, Iterable)
        and not isinstance(images, str | np.ndarray)
        and not hasattr(images, "__fspath__")
        and not hasattr(images, "mode")
    )
    found = []
    for pixels, detections in predictions(model, images if several else [images], options):
        if isinstance(pixels, InputError):
            raise pixels
        if dense and "rles" in detections:
            detections["masks"] = _dense(detections.pop("rles"), pixels.shape[:2])
        found.append(detections)
    return found


def _dense(rles: Any, size: tuple[int, ...]) -> Tensor:
    out = np.zeros((len(rles), *size), np.uint8)
    for mask, rle in zip(out, rles, strict=True):
        mask[:] = masks.decode(rle)
    return torch.from_numpy(out)


def predictions(
    model: ObjectDetector, images: Iterable[Any], options: Options
) -> Iterator[tuple[Any, Any]]:
    """Yields each image's pixels [H, W, 3] uint8 and its detections, in the order of the images.

    For an image that cannot be read it yields the InputError and None; in place of the pixels of
    one that is read tile by tile, the LargeImage.
    """
    pixel_range = options.pixel_range or model.preprocessing.pixel_range
    images = read_ahead(images, tiled=options.tile is not None, pixel_range=pixel_range)
    yield from Predictor(model, options).in_order(images)


def detector_of(
    model: ObjectDetector, options: Options
) -> Callable[[Iterable[np.ndarray]], list[Detections]]:
    """A function that finds the objects in decoded images [H, W, 3] uint8, best first."""
    predictor = Predictor(model, options)

    def look(images: Iterable[np.ndarray]) -> list[Detections]:
        return [found for _, found in predictor.in_order(images)]

    return look
