"""A small COCO dataset painted from a seed: what the demo and the tests train on.

Discs, squares, triangles and stars lie on each other before a textured background. A class has
its shape and, as most real things do, a surface and a range of hues of its own; sizes, rotations
and how light or vivid a colour is are drawn alike for all of them.
Invariants:

- One seed, one dataset, byte for byte (on one machine); picture ``i`` of a split does not depend
  on how many follow.
- An annotation's mask is exactly the pixels that show the instance; no pixel belongs to two.
- Every instance shows at least half of itself.
- What COCO files hold occurs: ids with gaps, polygons (whole shapes), compressed and uncompressed
  RLE (shapes that are partly hidden or leave the picture), crowds, pictures without instances.

``python -m autotimm.data.synthetic FOLDER --train 400 --val 40 --size 192`` writes one.
"""

from __future__ import annotations

import colorsys
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
import simplejpeg
from numpy.typing import NDArray

from autotimm.coco import masks
from autotimm.structures import InputError

CATEGORIES = {"disc": 1, "square": 3, "triangle": 7, "star": 18}
"""Name -> category id, with gaps as in COCO."""

SURFACES = {
    "disc": ("dots", 0.58),
    "square": ("checks", 0.12),
    "triangle": ("stripes", 0.85),
    "star": ("gradient", 0.36),
}
"""The pattern that a class is filled with, and the hue (0 to 1) around which its colours lie."""

SMALLEST_SIDE = 64
MIN_VISIBLE = 0.5
_CROWD_EVERY, _EMPTY_EVERY = 12, 16  # pictures; by number, so that small datasets have some too

Generator = np.random.Generator
Float = NDArray[np.float32]


@dataclass(slots=True)
class Painted:
    """One instance of a painted picture.

    Attributes:
        category: a key of ``CATEGORIES``.
        mask: [H, W] uint8 of 0 and 1, the pixels that show it.
        full_area: pixels that it would have were nothing before it and the picture larger.
        polygon: its vertices x, y, x, y, ... while it is whole; None where a part is hidden.
        crowd: it is a cluster of many tiny ones.
    """

    category: str
    mask: NDArray[np.uint8]
    full_area: float
    polygon: list[float] | None = None
    crowd: bool = False


def make_dataset(
    folder: str | Path,
    *,
    train: int = 400,
    val: int = 40,
    size: int | tuple[int, int] = 192,
    seed: int = 0,
) -> None:
    """Write a dataset of painted shapes in COCO's layout.

    ``train2017/``, ``val2017/`` and ``annotations/instances_{train,val}2017.json`` appear together
    or not at all.

    Args:
        folder: where to; must be missing or empty.
        train: number of pictures to train on.
        val: number of pictures to evaluate on.
        size: side of the pictures in pixels, or their height and width.
        seed: decides every pixel.

    Raises:
        InputError: the folder holds something, or an argument is out of range.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < SMALLEST_SIDE:
        raise InputError(f"size {height} x {width} is too small: use {SMALLEST_SIDE} or more")
    for name, count in (("train", train), ("val", val)):
        if count < 1:
            raise InputError(f"{name} is {count}: give at least 1 picture")
    if seed < 0:
        raise InputError(f"seed is {seed}: give 0 or more")
    folder = Path(folder).resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder: remove it or name another")

    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        (partial / "annotations").mkdir(parents=True)
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            (partial / f"{split}2017").mkdir()
            coco = _write_split(partial / f"{split}2017", number, count, height, width, seed)
            path = partial / "annotations" / f"instances_{split}2017.json"
            path.write_bytes(orjson.dumps(coco))
        partial.replace(folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def paint(
    rng: Generator, height: int, width: int, *, instances: int | None = None, crowd: bool = False
) -> tuple[NDArray[np.uint8], list[Painted]]:
    """Paint one picture.

    Args:
        rng: where all chance comes from.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        instances: how many to try to place; None for 2 to 6. Crowded pictures may hold fewer.
        crowd: also scatter one cluster of tiny discs behind them.

    Returns:
        The picture [height, width, 3] uint8 RGB, and what it shows, back to front.
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
    """Lay ``new`` over the others and paint it, unless one of them then showed too little."""
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
    """Fill ``mask`` with a lit, bevelled texture that throws a soft shadow; changes ``canvas``."""
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
    """Vertices [P, 2] of a shape in the unit circle, rotated by ``angle`` radians."""
    number = {"disc": 48, "square": 4, "triangle": 3, "star": 10}[category]
    angles = angle + np.arange(number) * 2 * np.pi / number
    radii = np.where(np.arange(number) % 2, 0.42 if category == "star" else 1.0, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _scatter(rng: Generator, height: int, width: int) -> Painted:
    """A crowd: a cluster of a dozen or more tiny discs, wholly inside the picture."""
    side = min(height, width)
    mask = np.zeros((height, width), np.uint8)
    centre = rng.uniform((0.25 * width, 0.25 * height), (0.75 * width, 0.75 * height))
    for _ in range(int(rng.integers(14, 25))):
        x, y = (centre + rng.normal(0, 0.08 * side, 2)).clip(0, (width - 1, height - 1))
        cv2.circle(mask, (int(x), int(y)), int(side * rng.uniform(0.015, 0.025)), 1, -1)
    return Painted("disc", mask, float(mask.sum()), crowd=True)


def _background_colours(rng: Generator) -> Float:
    """Two muted colours [2, 3] RGB of similar brightness."""
    value = rng.uniform(0.3, 0.8)
    return _rgb(
        [
            (rng.uniform(), rng.uniform(0.05, 0.35), value),
            (rng.uniform(), rng.uniform(0.05, 0.35), value + rng.uniform(-0.2, 0.2)),
        ]
    )


def _fill_colours(rng: Generator, hue: float) -> Float:
    """Two vivid colours [2, 3] RGB near a hue."""
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
    """Blend two colours [2, 3] in a pattern [height, width, 3], 0 to 255; a random one if None.

    ``scale`` is the pattern's period as a fraction of the shorter side.
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
    """Noise [height, width] about -1 to 1: each octave 0.6 times as strong as the coarser one."""
    total = np.zeros((height, width), np.float32)
    cells, strength = 3, 0.6
    while cells < min(height, width) // 2:
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        total += strength * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        cells, strength = 2 * cells, 0.6 * strength
    return total


def _write_split(
    folder: Path, number: int, count: int, height: int, width: int, seed: int
) -> dict[str, Any]:
    """Write ``count`` pictures into ``folder`` and return their COCO annotation file's content."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(count):
        rng = np.random.default_rng([seed, number, i])
        picture, shown = paint(
            rng,
            height,
            width,
            instances=0 if i % _EMPTY_EVERY == _EMPTY_EVERY - 1 else None,
            crowd=i % _CROWD_EVERY == _CROWD_EVERY // 2,
        )
        # Both gaps and splits show in the ids: odd ones to train on, even ones to evaluate on.
        image_id = 100 + 6 * i + 1 + number
        name = f"{image_id:012d}.jpg"
        (folder / name).write_bytes(simplejpeg.encode_jpeg(picture, quality=90))
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for one in shown:
            annotation_id = 2 * len(annotations) + 1 + number
            annotations.append(_annotation(annotation_id, image_id, one))
    return {
        "info": {"description": "Shapes painted by autotimm.data.synthetic", "seed": seed},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": category_id, "name": name, "supercategory": "shape"}
            for name, category_id in CATEGORIES.items()
        ],
    }


def _annotation(annotation_id: int, image_id: int, one: Painted) -> dict[str, Any]:
    """A COCO annotation: a whole instance's polygon; for others, both kinds of RLE in turns."""
    segmentation: Any
    if one.polygon is not None:
        segmentation = [one.polygon]
    elif annotation_id % 4 < 2:
        segmentation = masks.encode(one.mask)
    else:
        segmentation = {"size": list(one.mask.shape), "counts": _runs(one.mask)}
    x, y, w, h = cv2.boundingRect(one.mask)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": CATEGORIES[one.category],
        "bbox": [float(x), float(y), float(w), float(h)],
        "area": float(one.mask.sum()),
        "iscrowd": int(one.crowd),
        "segmentation": segmentation,
    }


def _runs(mask: NDArray[np.uint8]) -> list[int]:
    """COCO's uncompressed RLE: lengths of the runs, column by column, the first one of zeros."""
    pixels = np.concatenate([[0], mask.ravel(order="F"), [2]])
    ends = np.flatnonzero(np.diff(pixels))
    return np.diff(ends, prepend=0).tolist()


def main(args: list[str] | None = None) -> int:
    """Run the command; bad input is one line on the error output and exit status 2."""
    from jsonargparse import auto_cli

    try:
        auto_cli(make_dataset, args=args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
