"""Writes a small COCO dataset of painted shapes, on which the demo and the tests train.

``painting.py`` paints the pictures. Invariants:

- The same seed gives the same dataset, byte for byte (on one machine); picture ``i`` of a split
  does not depend on the number of pictures.
- The dataset has the variety of COCO files: ids with gaps, polygons (of whole shapes), compressed
  and uncompressed RLE (of shapes that are partly hidden or cut off), crowds, and pictures without
  instances.

``python -m autotimm.data.synthetic FOLDER --train 400 --val 40 --size 192`` writes one.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
import simplejpeg
from numpy.typing import NDArray

from autotimm.coco import masks
from autotimm.data.painting import CATEGORIES, Painted, paint
from autotimm.files.shortage import reason
from autotimm.structures import InputError

SMALLEST_SIDE = 64
_CROWD_EVERY, _EMPTY_EVERY = 12, 16  # pictures; not drawn, so that small datasets have some too


def make_dataset(
    folder: str | Path,
    *,
    train: int = 400,
    val: int = 40,
    size: int | tuple[int, int] = 192,
    seed: int = 0,
) -> None:
    """Writes a dataset of painted shapes in COCO's layout.

    ``train2017/``, ``val2017/`` and ``annotations/instances_{train,val}2017.json`` appear together
    or not at all.

    Args:
        folder: the folder to create; it may exist if it is empty.
        train: number of pictures to train on.
        val: number of pictures to evaluate on.
        size: side of the pictures in pixels, or their height and width.
        seed: determines every pixel.

    Raises:
        InputError: the folder is not empty, or an argument is out of range.
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
        raise InputError(f"{folder} exists and is not an empty folder: remove it or give another")

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
        raise InputError(f"cannot write {folder}: {reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_split(
    folder: Path, number: int, count: int, height: int, width: int, seed: int
) -> dict[str, Any]:
    """Writes ``count`` pictures into ``folder``; returns the content of their annotation file."""
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
        # Ids have gaps, and no two splits share one.
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
    """Makes a COCO annotation: with a polygon if the instance is whole, else with either RLE."""
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
    """COCO's uncompressed RLE: lengths of runs in column-major order, beginning with zeros."""
    pixels = np.concatenate([[0], mask.ravel(order="F"), [2]])
    ends = np.flatnonzero(np.diff(pixels))
    return np.diff(ends, prepend=0).tolist()


def main(args: list[str] | None = None) -> int:
    """Runs the command; bad input prints one line on stderr and exits with 2."""
    from jsonargparse import auto_cli

    try:
        auto_cli(make_dataset, args=args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
