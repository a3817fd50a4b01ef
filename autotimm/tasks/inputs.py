"""Checks of a model's input images."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor

from autotimm.structures import InputError


def check_normalised(image: Tensor) -> None:
    """Raise InputError if the images of a batch are still bytes."""
    if not image.is_floating_point():
        raise InputError(
            "the batch's images are not normalised: the data module does that, so give the trainer "
            "datamodule=..., not its dataloaders"
        )


def batched(image: Any) -> Tensor:
    """The images of ``predict()`` as [B, 3, H, W]; InputError for another shape or type."""
    if not isinstance(image, Tensor):
        raise InputError(
            f"predict() takes normalised float images as a tensor, not {type(image).__name__}"
        )
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
        raise InputError(
            f"predict() takes normalised float images [B, 3, H, W], not {image.dtype} "
            f"{list(image.shape)}"
        )
    return image


def checked_size(size: Any) -> tuple[int, int]:
    """Height and width as positive integers; InputError if they are not."""
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise InputError(f"predict() takes a size of (height, width) in whole pixels, not {size}")
    return height, width
