"""What the benchmarks read: a COCO folder given, or synthetic photos with COCO's statistics.

640 x 480 JPEGs of about 146 KB, 7.3 instances an image, polygons of about 22 points, and sides of
objects spread as in COCO, of whose objects 41 % are smaller than 32 x 32 pixels and 24 % larger
than 96 x 96. What is in the pictures is noise: no model learns from it, but a decoder, a disk and a
rasteriser have the work that COCO gives them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from autotimm.coco import layouts
from autotimm.structures import InputError

WIDTH, HEIGHT = 640, 480
_QUALITY = 92
_NOISE = 11.2  # standard deviation of the grain: sets the bytes of a file
_INSTANCES = 7.3
_SIDE = (3.73, 1.18)  # mean and deviation of the logarithm of an object's side in pixels
_POINTS = 22
_CATEGORIES = 80


def split_of(data: Path | None, name: str, work: Path, images: int, seed: int) -> layouts.Split:
    """The split of a COCO folder; without one, that of synthetic photos made below ``work``.

    Exits with one line where there is no such split.
    """
    if data is None:
        data, name = work / "photos", "train"
        make(data, images, seed)
    try:
        splits = layouts.find_splits(data)
    except InputError as error:
        sys.exit(f"--data: {error}")
    if name not in splits:
        sys.exit(f"--split: {data} has no {name!r}, only {', '.join(splits)}")
    return splits[name]


def make(root: Path, images: int, seed: int) -> None:
    """Writes a COCO folder with one split, train; the same arguments give the same bytes."""
    rng = np.random.Generator(np.random.Philox(seed))
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(1, images + 1):
        name = f"{i:012d}.jpg"
        (root / "train" / name).write_bytes(photo(rng))
        entries.append({"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for _ in range(rng.geometric(1 / (1 + _INSTANCES)) - 1):
            annotations.append({"id": len(annotations) + 1, "image_id": i, **instance(rng)})
    categories = [{"id": c, "name": f"class {c}"} for c in range(1, _CATEGORIES + 1)]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))


def photo(rng: np.random.Generator) -> bytes:
    """A JPEG of soft colours with grain."""
    soft = rng.integers(0, 256, (12, 16, 3), np.uint8)
    soft = cv2.resize(soft, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    grain = rng.standard_normal((HEIGHT, WIDTH, 1), np.float32) * (_NOISE * rng.uniform(0.6, 1.4))
    pixels = np.clip(soft + grain, 0, 255).astype(np.uint8)
    return simplejpeg.encode_jpeg(pixels, quality=_QUALITY, colorsubsampling="420")


def instance(rng: np.random.Generator) -> dict[str, Any]:
    """An object of one polygon that lies inside the image, as COCO's JSON has it."""
    side = float(np.clip(np.exp(rng.normal(*_SIDE)), 5, 400))
    points = max(4, int(rng.poisson(_POINTS)))
    stretch = np.exp(rng.normal(0, 0.3))
    radii = side * 0.56 * np.clip(rng.normal(1, 0.15, points), 0.4, 1.6)
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    centre = rng.uniform((0, 0), (WIDTH, HEIGHT))
    offsets = np.stack([np.cos(angles) * stretch, np.sin(angles) / stretch], axis=1)
    outline = centre + radii[:, None] * offsets
    # Shifted rather than cut at the border, so that the sizes stay as drawn.
    low, high = outline.min(axis=0), outline.max(axis=0)
    outline += np.maximum(-low, 0) + np.minimum((WIDTH, HEIGHT) - high, 0)
    outline = outline.clip(0, (WIDTH, HEIGHT)).round(2)
    x, y = outline.T
    area = abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2
    corner, size = outline.min(axis=0), np.ptp(outline, axis=0)
    return {
        "category_id": int(rng.integers(1, _CATEGORIES + 1)),
        "segmentation": [outline.ravel().tolist()],
        "bbox": [round(float(v), 2) for v in (*corner, *size)],
        "area": round(area, 2),
        "iscrowd": 0,
    }
