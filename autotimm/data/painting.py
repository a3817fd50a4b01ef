"""Paints pictures of shapes from a random generator: discs, squares, triangles and stars.

Shapes overlap before a textured background. Each class has its shape and, like most real objects,
a surface and a range of hues; sizes, rotations, brightness and saturation have the same
distributions for all classes. Invariants: an instance's mask is exactly the pixels that show it; no
pixel belongs to two instances; at least half of every instance is visible.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from autotimm.coco import masks

CATEGORIES = {"disc": 1, "square": 3, "triangle": 7, "star": 18}
"""Name -> category id, with gaps as in COCO."""

SURFACES = {
    "disc": ("dots", 0.58),
    "square": ("checks", 0.12),
    "triangle": ("stripes", 0.85),
    "star": ("gradient", 0.36),
}
"""Class -> the pattern of its surface, and the mean hue (0 to 1) of its colours."""

MIN_VISIBLE = 0.5
"""The least share of an instance that is visible."""

Generator = np.random.Generator
Float = NDArray[np.float32]


@dataclass(slots=True)
class Painted:
    """One instance of a painted picture.

    Attributes:
        category: a key of ``CATEGORIES``.
        mask: [H, W] uint8 of 0 and 1, the pixels that show the instance.
        full_area: its pixels if nothing hid it and the picture did not cut it off.
        polygon: its vertices x, y, x, y, ...; None if a part is hidden or cut off.
        crowd: whether it is a cluster of many tiny discs.
    """

    category: str
    mask: NDArray[np.uint8]
    full_area: float
    polygon: list[float] | None = None
    crowd: bool = False


def paint(
    rng: Generator, height: int, width: int, *, instances: int | None = None, crowd: bool = False
) -> tuple[NDArray[np.uint8], list[Painted]]:
    """Paints one picture.

    Args:
        rng: the source of all random numbers.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        instances: how many to place; None for 2 to 6. There are fewer if the picture gets too full.
        crowd: also paint one cluster of tiny discs behind them.

    Returns:
        The picture [height, width, 3] uint8 RGB, and its instances, back to front.
    """
    count = int(rng.integers(2, 7)) if instances is None else instances
    side = min(height, width)
    shown: list[Painted] = []
    canvas = _texture(rng, height, width, _background_colours(rng), scale=rng.uniform(0.1, 0.4))
    if crowd:
        _place(canvas, rng, shown, _scatter(rng, height, width))
    for _ in range(20 * count):
        if sum(not one.crowd for one in shown) == count:
            break
        category = str(rng.choice(list(CATEGORIES)))
        radius = side * rng.uniform(0.15, 0.45) / 2
        centre = rng.uniform((0, 0), (width, height))
        points = centre + radius * _vertices(category, rng.uniform(0, 2 * np.pi))
        polygon = points.round(2).ravel().tolist()
        mask = masks.decode(masks.to_rle([polygon], height, width))
        inside = bool((points >= 0).all() and (points <= (width, height)).all())
        area = float(mask.sum()) if inside else float(cv2.contourArea(points.astype(np.float32)))
        _place(canvas, rng, shown, Painted(category, mask, area, polygon if inside else None))
    blurred = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 0.7))
    picture = blurred + rng.normal(0, rng.uniform(1, 5), canvas.shape)
    return picture.clip(0, 255).astype(np.uint8), shown


def _place(canvas: Float, rng: Generator, shown: list[Painted], new: Painted) -> None:
    """Paints ``new`` on top of the others, unless too little of any of them would be visible."""
    left = [one.mask & ~new.mask for one in shown] + [new.mask]
    both = list(zip([*shown, new], left, strict=True))
    if any(mask.sum() < MIN_VISIBLE * one.full_area for one, mask in both):
        return
    for one, mask in both:
        if not np.array_equal(mask, one.mask):
            one.mask, one.polygon = mask, None
    shown.append(new)
    _paint_over(canvas, new.mask, *SURFACES[new.category], rng)


def _paint_over(
    canvas: Float, mask: NDArray[np.uint8], pattern: str, hue: float, rng: Generator
) -> None:
    """Paints a lit, bevelled texture with a soft shadow into ``mask``; changes ``canvas``."""
    height, width = mask.shape
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    bevel = max(1.5, 0.15 * float(depth.max()))
    rows, cols = np.mgrid[:height, :width].astype(np.float32)
    x, y, w, h = cv2.boundingRect(mask)
    light = 1.12 - 0.3 * ((cols - x) / w + (rows - y) / h) / 2
    light *= 0.62 + 0.38 * np.minimum(depth / bevel, 1)
    scale = rng.uniform(0.04, 0.12)
    fill = _texture(rng, height, width, _fill_colours(rng, hue), scale, pattern)

    shift = 0.012 * min(height, width)
    moved = cv2.warpAffine(
        mask.astype(np.float32), np.array([[1, 0, shift], [0, 1, shift]]), (width, height)
    )
    canvas *= (1 - 0.45 * cv2.GaussianBlur(moved, (0, 0), 1.5 * shift))[..., None]
    canvas[mask > 0] = (fill * light[..., None])[mask > 0]


def _vertices(category: str, angle: float) -> NDArray[np.float64]:
    """The vertices [P, 2] of a shape in the unit circle, rotated by ``angle`` radians."""
    number = {"disc": 48, "square": 4, "triangle": 3, "star": 10}[category]
    angles = angle + np.arange(number) * 2 * np.pi / number
    radii = np.where(np.arange(number) % 2, 0.42 if category == "star" else 1.0, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _scatter(rng: Generator, height: int, width: int) -> Painted:
    """Makes a crowd: a cluster of 14 to 24 tiny discs with centres inside the picture."""
    side = min(height, width)
    mask = np.zeros((height, width), np.uint8)
    centre = rng.uniform((0.25 * width, 0.25 * height), (0.75 * width, 0.75 * height))
    for _ in range(int(rng.integers(14, 25))):
        x, y = (centre + rng.normal(0, 0.08 * side, 2)).clip(0, (width - 1, height - 1))
        cv2.circle(mask, (int(x), int(y)), int(side * rng.uniform(0.015, 0.025)), 1, -1)
    return Painted("disc", mask, float(mask.sum()), crowd=True)


def _background_colours(rng: Generator) -> Float:
    """Draws two muted colours [2, 3] RGB of similar brightness."""
    value = rng.uniform(0.3, 0.8)
    return _rgb(
        [
            (rng.uniform(), rng.uniform(0.05, 0.35), value),
            (rng.uniform(), rng.uniform(0.05, 0.35), value + rng.uniform(-0.2, 0.2)),
        ]
    )


def _fill_colours(rng: Generator, hue: float) -> Float:
    """Draws two vivid colours [2, 3] RGB near a hue."""
    hue += rng.uniform(-0.06, 0.06)
    saturation, value = rng.uniform(0.6, 0.95), rng.uniform(0.7, 1.0)
    other = (hue + rng.uniform(-0.1, 0.1)) % 1
    darker = rng.uniform(0.6, 0.9) * value
    return _rgb([(hue, saturation, value), (other, 0.85 * saturation, darker)])


def _rgb(hsv: Sequence[tuple[float, float, float]]) -> Float:
    return np.array([colorsys.hsv_to_rgb(*one) for one in hsv], np.float32) * 255


def _texture(
    rng: Generator,
    height: int,
    width: int,
    colours: Float,
    scale: float,
    pattern: str | None = None,
) -> Float:
    """Blends two colours [2, 3] in a pattern [height, width, 3], 0 to 255.

    ``scale`` is the pattern's period as a fraction of the shorter side. Without ``pattern``, draws
    one.
    """
    period = max(4.0, scale * min(height, width))
    angle = rng.uniform(0, np.pi)
    rows, cols = np.mgrid[:height, :width].astype(np.float32)
    along = np.cos(angle) * cols + np.sin(angle) * rows
    across = np.cos(angle) * rows - np.sin(angle) * cols
    waves = np.sin(2 * np.pi / period * np.stack([along, across]))
    if pattern is None:
        pattern = rng.choice(["gradient", "stripes", "checks", "dots", "clouds"])
    if pattern == "gradient":
        blend = (along - along.min()) / np.ptp(along)
    elif pattern == "stripes":
        blend = 0.5 + 0.5 * np.clip(3 * waves[0], -1, 1)
    elif pattern == "checks":
        blend = 0.5 + 0.5 * np.clip(6 * waves.prod(axis=0), -1, 1)
    elif pattern == "dots":
        blend = np.clip(4 * (waves.sum(axis=0) - 1), 0, 1)
    else:
        blend = np.full((height, width), 0.5, np.float32)
    strength = 0.35 if pattern == "clouds" else 0.12
    blend = np.clip(blend + strength * _clouds(rng, height, width), 0, 1)[..., None]
    return ((1 - blend) * colours[0] + blend * colours[1]).astype(np.float32)


def _clouds(rng: Generator, height: int, width: int) -> Float:
    """Noise [height, width] of about -1 to 1; each octave has 0.6 of the coarser one's strength."""
    total = np.zeros((height, width), np.float32)
    cells, strength = 3, 0.6
    while cells < min(height, width) // 2:
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        total += strength * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        cells, strength = 2 * cells, 0.6 * strength
    return total
