"""Small COCO folders made on the spot, for tests of what reads them."""

from __future__ import annotations

import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autotimm.data.synthetic import make_dataset

SQUARE = [[10.0, 8.0, 30.0, 8.0, 30.0, 28.0, 10.0, 28.0]]
CATEGORIES = [{"id": 3, "name": "disc"}, {"id": 7, "name": "star", "supercategory": "shape"}]


def picture(width: int = 64, height: int = 48, kind: str = "JPEG", **options: Any) -> bytes:
    """An image of coloured noise, encoded."""
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise).save(buffer, kind, **options)
    return buffer.getvalue()


def annotation(**changes: Any) -> dict[str, Any]:
    """A sound annotation, changed; a key whose new value is ... is left out."""
    sound = {
        "id": 1,
        "image_id": 1,
        "category_id": 3,
        "bbox": [10.0, 8.0, 20.0, 20.0],
        "area": 400.0,
        "iscrowd": 0,
        "segmentation": SQUARE,
    }
    return {key: value for key, value in (sound | changes).items() if value is not ...}


def image(**changes: Any) -> dict[str, Any]:
    """A sound image entry, changed likewise."""
    sound = {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}
    return {key: value for key, value in (sound | changes).items() if value is not ...}


def write(
    root: Path,
    images: list[Any] | None = None,
    annotations: list[Any] | None = None,
    categories: list[Any] | None = None,
    files: dict[str, bytes] | None = None,
    split: str = "train",
) -> Path:
    """Writes one split of a COCO folder: by default one image and one annotation."""
    content = {
        "images": [image()] if images is None else images,
        "annotations": [annotation()] if annotations is None else annotations,
        "categories": CATEGORIES if categories is None else categories,
    }
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    for name, data in ({"a.jpg": picture()} if files is None else files).items():
        (root / split / name).parent.mkdir(parents=True, exist_ok=True)
        (root / split / name).write_bytes(data)
    return root


def mixed(root: Path, counts: tuple[int, int, int] = (5, 5, 3)) -> Path:
    """Painted images of 96 x 64 pixels, 64 x 96 and 96 x 96, so many of each to train on; one of
    each to validate on."""
    whole: dict[str, dict[str, Any]] = {}
    for n, (count, size) in enumerate(zip(counts, ((64, 96), (96, 64), 96), strict=True)):
        part = root.parent / f"{root.name}-{n}"
        make_dataset(part, train=count, val=1, size=size, seed=n)
        for split in ("train2017", "val2017"):
            content = json.loads((part / f"annotations/instances_{split}.json").read_text())
            (root / split).mkdir(parents=True, exist_ok=True)
            for entry in content["images"]:
                name = f"{n}-{entry['file_name']}"
                shutil.copy(part / split / entry["file_name"], root / split / name)
                entry |= {"file_name": name, "id": entry["id"] * 3 + n}
            for entry in content["annotations"]:
                entry |= {"image_id": entry["image_id"] * 3 + n, "id": entry["id"] * 3 + n}
            if n:
                for key in ("images", "annotations"):
                    whole[split][key] += content[key]
            else:
                whole[split] = content
    (root / "annotations").mkdir()
    for split, content in whole.items():
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root
