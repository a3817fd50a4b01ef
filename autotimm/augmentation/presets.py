"""Augmentation settings, the presets, and colour augmentation.

``transforms.py`` has the geometry. All random numbers come from the generator that is passed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np

from autotimm.plain import plain_settings
from autotimm.structures import InputError

_LUMA = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
# A rotation of the hue in YIQ as a matrix in RGB: its constant, cosine and sine parts.
_STAYS, _COSINE, _SINE = (
    _FROM_YIQ @ np.array(part, np.float64) @ _TO_YIQ
    for part in (
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 0, 0], [0, 0, -1], [0, 1, 0]],
    )
)
_MID_GREY = 114.0  # contrast scales distances from this


@plain_settings
@dataclass(frozen=True, slots=True)
class Augmentation:
    """How to augment training images. The defaults change nothing.

    Attributes:
        flip: probability of a horizontal flip.
        scale: range of the size, relative to the one that fits the canvas. Larger images are
            cropped and smaller ones padded, both at a random place.
        linear_scale: draw the size uniformly; if False, draw its logarithm uniformly.
        brightness: multiply colours by up to 1 ± this.
        contrast: multiply distances from mid-grey by up to 1 ± this.
        saturation: multiply distances from each pixel's own grey by up to 1 ± this.
        hue: rotate colours by up to ± this, as a fraction of the full circle.
        grayscale: probability of removing all colour.
        blur: probability of a Gaussian blur.
    """

    flip: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    linear_scale: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0

    def __post_init__(self) -> None:
        try:
            low, high = (float(side) for side in self.scale)
        except (TypeError, ValueError):
            low, high = 0.0, 0.0
        if not 0.01 <= low <= high <= 100:
            raise InputError(
                f"augmentation: scale is {self.scale!r}, but must be [lowest, highest], two factors"
                " from 0.01 to 100"
            )
        object.__setattr__(self, "scale", (low, high))
        if not isinstance(self.linear_scale, bool):
            raise InputError(
                f"augmentation: linear_scale is {self.linear_scale!r}, but must be true or false"
            )
        for name, most in _MOST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"augmentation: {name} is {value!r}, but must be a number")
            if not 0 <= value <= most:
                raise InputError(f"augmentation: {name} is {value}, but must be 0 to {most}")


_MOST = {
    f.name: 0.5 if f.name == "hue" else 1.0
    for f in fields(Augmentation)
    if f.name not in ("scale", "linear_scale")
}

PRESETS = {
    "light": Augmentation(flip=0.5, scale=(0.9, 1.1)),
    "default": Augmentation(
        flip=0.5, scale=(0.8, 1.25), brightness=0.2, contrast=0.2, saturation=0.2, hue=0.01
    ),
    "strong": Augmentation(
        flip=0.5,
        scale=(0.5, 2.0),
        brightness=0.4,
        contrast=0.4,
        saturation=0.5,
        hue=0.06,
        grayscale=0.1,
        blur=0.1,
    ),
    # Large-scale jitter (Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for
    # Instance Segmentation", 2021): for long training, from a few hundred epochs of COCO on.
    "lsj": Augmentation(flip=0.5, scale=(0.1, 2.0), linear_scale=True),
}


def augmentation_of(value: str | dict[str, Any] | Augmentation) -> Augmentation:
    """Returns the preset of a name, or an augmentation made from its fields.

    Raises:
        InputError: there is no such preset or field, or a field is out of range.
    """
    if isinstance(value, Augmentation):
        return value
    if isinstance(value, dict):
        known = [f.name for f in fields(Augmentation)]
        if unknown := sorted(set(map(str, value)) - set(known)):
            raise InputError(
                f"augmentation: there is no field {unknown[0]!r}, only {', '.join(known)}"
            )
        return Augmentation(**value)
    if not isinstance(value, str) or value not in PRESETS:
        raise InputError(
            f"augmentation_preset is {value!r}, but must be one of {', '.join(PRESETS)}, or the"
            " fields of an Augmentation"
        )
    return PRESETS[value]


def summary(augmentation: Augmentation) -> str:
    """What an augmentation does to an image, in a few words."""
    low, high = augmentation.scale
    colours = ("brightness", "contrast", "saturation", "hue")
    parts = {
        "flips": augmentation.flip > 0,
        f"size x {low:g} to {high:g}": (low, high) != (1, 1),
        "colours": any(getattr(augmentation, name) for name in colours),
        "some grey": augmentation.grayscale > 0,
        "some blurred": augmentation.blur > 0,
    }
    return ", ".join(part for part, there in parts.items() if there) or "no augmentation"


def recolor(image: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> None:
    """Changes the colours of an image [h, w, 3] uint8 in place: by one 3 x 4 matrix, and a blur.

    The hue is rotated in YIQ, where it is an angle around the grey axis.
    """
    b, c, s, turn, grey, blur, sigma = rng.random(7)
    matrix = color_matrix(
        brightness=1 + augmentation.brightness * (2 * b - 1),
        contrast=1 + augmentation.contrast * (2 * c - 1),
        saturation=0.0
        if grey < augmentation.grayscale
        else 1 + augmentation.saturation * (2 * s - 1),
        turn=augmentation.hue * (2 * turn - 1),
    )
    if not np.array_equal(matrix, np.eye(3, 4)):
        cv2.transform(image, matrix, dst=image)
    if blur < augmentation.blur:
        cv2.GaussianBlur(image, (0, 0), 0.3 + 1.7 * sigma, dst=image)


def color_matrix(
    brightness: float = 1.0, contrast: float = 1.0, saturation: float = 1.0, turn: float = 0.0
) -> np.ndarray:
    """The matrix [3, 4] float64 that maps R, G, B (0 to 255) and 1 to the new R, G, B.

    Args:
        brightness: factor of all colours.
        contrast: factor of distances from mid-grey.
        saturation: factor of distances from each pixel's own grey.
        turn: rotation of the hue, as a fraction of the full circle.
    """
    linear = np.eye(3)
    if turn:
        angle = 2 * math.pi * turn
        linear = _STAYS + math.cos(angle) * _COSINE + math.sin(angle) * _SINE
    if saturation != 1:
        linear = (1 - saturation) * (_LUMA @ linear) + saturation * linear
    matrix = np.empty((3, 4))
    matrix[:, :3] = brightness * contrast * linear
    matrix[:, 3] = brightness * (1 - contrast) * _MID_GREY
    return matrix
