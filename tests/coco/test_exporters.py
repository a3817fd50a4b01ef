"""What annotation tools write, in miniature, as docs/formats.md lists it: instances, classes, masks
and boxes of each.

Each file has the keys, the ids, the file names and the kinds of mask of the tool and version that
it names; findings/ runs some of the tools themselves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as pycocotools
import pytest
from coco_folder import picture

from autotimm.coco import index as coco
from autotimm.coco.checks import Problems

HIGH, WIDE = 80, 100


def square(x: int, y: int, side: int) -> list[float]:
    """The corners of a square as a flat polygon."""
    return [float(v) for v in (x, y, x + side, y, x + side, y + side, x, y + side)]


def runs(*squares: tuple[int, int, int]) -> list[int]:
    """The uncompressed RLE of squares (x, y, side), counted by hand: column by column."""
    mask = np.zeros((HIGH, WIDE), np.uint8)
    for x, y, side in squares:
        mask[y : y + side, x : x + side] = 1
    flat = np.concatenate(([0], mask.ravel(order="F"), [255]))
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate(([0], edges))).tolist()


def drawn(polygon: list[float]) -> int:
    """The pixels of a polygon, as pycocotools counts them."""
    return int(pycocotools.area(pycocotools.frPyObjects([polygon], HIGH, WIDE))[0])


@dataclass(frozen=True)
class Export:
    """One tool's file, and what has to come out of it.

    Attributes:
        file: where the tool puts it.
        images: the folder that ``file_name`` is meant for.
        pictures: the image files, below the export's folder.
        content: the JSON file.
        expected: class, pixels and crowd flag of each instance, by image.
        left_out: how many annotations no mask can be had of.
        off: by how many pixels the tool's boxes differ from the masks'.
    """

    file: str
    images: str
    pictures: list[str]
    content: dict[str, Any]
    expected: list[list[tuple[str, int, int]]]
    left_out: int = 0
    off: float = 0.0


SUPERVISION = Export(  # 0.31.2, DetectionDataset.as_coco: outlines lack a row and a column
    file="annotations.json",
    images="images",
    pictures=["images/a.png"],
    content={
        "info": {},
        "licenses": [{"id": 1, "url": "", "name": ""}],
        "categories": [
            {"id": 1, "name": "disc", "supercategory": "common-objects"},
            {"id": 2, "name": "star", "supercategory": "common-objects"},
        ],
        "images": [
            {
                "id": 1,
                "license": 1,
                "file_name": "a.png",
                "height": HIGH,
                "width": WIDE,
                "date_captured": "11/30/2026,03:50:13",
            }
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [10.0, 10.0, 9.0, 9.0],
                "area": 100.0,
                "segmentation": [[10, 10, 10, 19, 19, 19, 19, 10]],
                "iscrowd": 0,
            },
            {
                "id": 2,
                "image_id": 1,
                "category_id": 2,
                "bbox": [30.0, 10.0, 29.0, 9.0],
                "area": 200.0,
                "segmentation": {"counts": runs((30, 10, 10), (50, 10, 10)), "size": [HIGH, WIDE]},
                "iscrowd": 1,
            },
            {
                "id": 3,
                "image_id": 1,
                "category_id": 1,
                "bbox": [70.0, 70.0, 0.0, 0.0],
                "area": 1.0,
                "segmentation": [],
                "iscrowd": 0,
            },
        ],
    },
    expected=[[("disc", 81, 0), ("star", 200, 1)]],
    left_out=1,
    off=1,
)


def datumaro(segmentation: Any, **changes: Any) -> dict[str, Any]:
    sound = {
        "id": 1,
        "image_id": 7,
        "category_id": 1,
        "segmentation": segmentation,
        "area": 100.0,
        "bbox": [10.0, 10.0, 10.0, 10.0],
        "iscrowd": 0,
    }
    return sound | changes


DATUMARO = Export(  # 1.13.12, coco_instances, segmentation_mode="guess"
    file="annotations/instances_train.json",
    images="images/train",
    pictures=["images/train/a.jpg", "images/train/b.jpg"],
    content={
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {
            "contributor": "",
            "date_created": "",
            "description": "",
            "url": "",
            "version": "",
            "year": "",
        },
        "categories": [
            {"id": 1, "name": "disc", "supercategory": "shape"},
            {"id": 2, "name": "star", "supercategory": ""},
        ],
        "images": [
            {
                "id": id_,
                "width": WIDE,
                "height": HIGH,
                "file_name": name,
                "license": 0,
                "flickr_url": "",
                "coco_url": "",
                "date_captured": 0,
            }
            for id_, name in ((9, "b.jpg"), (7, "a.jpg"))
        ],
        "annotations": [
            datumaro([square(10, 10, 10)]),
            datumaro(
                [square(30, 10, 10), square(50, 10, 10)],
                id=2,
                category_id=2,
                area=200.0,
                bbox=[30.0, 10.0, 30.0, 10.0],
            ),
            datumaro(  # a Mask without the attribute is_crowd
                {"counts": runs((50, 50, 20)), "size": [HIGH, WIDE]},
                id=3,
                area=400.0,
                bbox=[50.0, 50.0, 20.0, 20.0],
                iscrowd=1,
            ),
            datumaro([], id=4),  # a Bbox
        ],
    },
    expected=[[], [("disc", 100, 0), ("star", 200, 0), ("disc", 400, 1)]],
    left_out=1,
)


def label_studio(category: int, polygon: list[float], bbox: list[float], id_: int = 0) -> Any:
    return {
        "id": id_,
        "image_id": 0,
        "category_id": category,
        "segmentation": [polygon] if polygon else [],
        "bbox": bbox,
        "ignore": 0,
        "iscrowd": 0,
        "area": bbox[2] * bbox[3],
    }


LABEL_STUDIO = Export(  # label-studio-sdk 2.1.2, COCO_WITH_IMAGES: ids from 0
    file="result.json",
    images=".",
    pictures=["images/1a2b3c4d-a.jpg", "images/5e6f7a8b-b.jpg"],
    content={
        "images": [
            {"width": WIDE, "height": HIGH, "id": 0, "file_name": "images/1a2b3c4d-a.jpg"},
            {"width": WIDE, "height": HIGH, "id": 1, "file_name": "images/5e6f7a8b-b.jpg"},
        ],
        "categories": [{"id": 0, "name": "disc"}, {"id": 1, "name": "star"}],
        "annotations": [
            label_studio(1, square(10, 8, 20), [10.0, 8.0, 20.0, 20.0]),
            label_studio(0, [], [50.0, 40.0, 20.0, 20.0], 1),  # a rectangle
        ],
        "info": {"year": 2026, "version": "1.0", "contributor": "Label Studio"},
    },
    expected=[[("star", 400, 0)], []],
    left_out=1,
)

LABEL_STUDIO_BRUSH = Export(  # label-studio-sdk 2.1.2, BRUSH_TO_COCO: an annotation for each piece
    file="result_coco.json",
    images="images",
    pictures=["images/a.jpg"],
    content={
        "images": [
            {
                "id": 0,
                "file_name": "a.jpg",
                "path": "/data/upload/1/a.jpg",
                "width": WIDE,
                "height": HIGH,
            }
        ],
        "annotations": [
            {
                "id": id_,
                "image_id": 0,
                "category_id": 1,
                "segmentation": [[x, 10, x, 19, x + 9, 19, x + 9, 10]],
                "area": 81,
                "bbox": [x, 10, 10, 10],
                "iscrowd": 0,
                "annotator": "1",
            }
            for id_, x in enumerate((40, 10))
        ],
        "categories": [
            {"id": 1, "name": "cup", "supercategory": "", "color": "#2dc9ad", "metadata": {}}
        ],
        "info": {"year": 2026, "version": "1.0"},
    },
    expected=[[("cup", 81, 0), ("cup", 81, 0)]],
    off=1,
)

SAHI = Export(  # 0.12.8, slice_coco: the JSON file beside the tiles, corners from the lower left
    file="train_coco.json",
    images=".",
    pictures=["a_0_0_0_100_80.png", "a_0_100_0_200_80.png"],
    content={
        "images": [
            {"height": HIGH, "width": WIDE, "id": 1, "file_name": "a_0_0_0_100_80.png"},
            {"height": HIGH, "width": WIDE, "id": 2, "file_name": "a_0_100_0_200_80.png"},
        ],
        "annotations": [
            {
                "iscrowd": 0,
                "image_id": 1,
                "bbox": [30.0, 10.0, 30.0, 10.0],
                "segmentation": [
                    [30, 20, 40, 20, 40, 10, 30, 10],
                    [50, 10, 50, 20, 60, 20, 60, 10],
                ],
                "category_id": 7,
                "id": 1,
                "area": 200,
            },
            {
                "iscrowd": 0,
                "image_id": 2,
                "bbox": [0.0, 10.0, 30.0, 10.0],
                "segmentation": [[0, 20, 30, 20, 30, 10, 0, 10]],
                "category_id": 3,
                "id": 2,
                "area": 300,
            },
        ],
        "categories": [
            {"id": 3, "name": "disc", "supercategory": "shape"},
            {"id": 7, "name": "star", "supercategory": "shape"},
        ],
    },
    expected=[[("star", 200, 0)], [("disc", 300, 0)]],
)


def hotcoco(**changes: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("keypoints", "num_keypoints", "obb", "score", "is_group_of"))
    return {"image_id": 1, "category_id": 3, "iscrowd": False} | nothing | changes


HOTCOCO = Export(  # 1.3.0, COCO.save: null for what there is not, iscrowd as true or false
    file="annotations/instances_train.json",
    images="train",
    pictures=["train/a.jpg"],
    content={
        "info": None,
        "images": [
            {
                "id": 1,
                "file_name": "a.jpg",
                "height": HIGH,
                "width": WIDE,
                "license": None,
                "coco_url": None,
                "flickr_url": None,
                "date_captured": None,
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
        ],
        "annotations": [
            hotcoco(
                id=1,
                bbox=[0.0, 0.0, 20.0, 20.0],
                area=400.0,
                segmentation=[square(0, 0, 20)],
            ),
            hotcoco(
                id=2,
                bbox=[50.0, 30.0, 40.0, 40.0],
                area=1600.0,
                segmentation={"size": [HIGH, WIDE], "counts": runs((50, 30, 40))},
                iscrowd=True,
            ),
            hotcoco(id=3, bbox=[0.0, 0.0, 5.0, 5.0], area=25.0, segmentation=None),
        ],
        "categories": [
            {
                "id": 3,
                "name": "disc",
                "supercategory": None,
                "skeleton": None,
                "keypoints": None,
                "frequency": None,
            }
        ],
        "licenses": [],
    },
    expected=[[("disc", 400, 0), ("disc", 1600, 1)]],
    left_out=1,
)

GLOBOX = Export(  # 2.9.0, save_coco: boxes alone, annotation ids from 0
    file="annotations/instances_train.json",
    images="train",
    pictures=["train/a.jpg"],
    content={
        "images": [{"id": 1, "file_name": "a.jpg", "width": WIDE, "height": HIGH}],
        "annotations": [
            {
                "iscrowd": 0,
                "ignore": 0,
                "image_id": 1,
                "bbox": [0.0, 0.0, 20.0, 20.0],
                "area": 400.0,
                "segmentation": [],
                "category_id": 1,
                "id": 0,
            }
        ],
        "categories": [{"supercategory": "none", "id": 1, "name": "person"}],
    },
    expected=[[]],
    left_out=1,
)

KWCOCO = Export(  # 0.9.1: an RLE with more keys, and a polygon that COCO does not have
    file="annotations/instances_train.json",
    images="train",
    pictures=["train/a.jpg"],
    content={
        "categories": [{"id": 1, "name": "cup"}],
        "videos": [],
        "images": [{"id": 1, "file_name": "a.jpg", "width": WIDE, "height": HIGH}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [10, 40, 30, 30],
                "segmentation": {
                    "shape": [HIGH, WIDE],
                    "counts": runs((10, 40, 30)),
                    "binary": True,
                    "order": "F",
                    "size": [HIGH, WIDE],
                },
            },
            {
                "id": 2,
                "image_id": 1,
                "category_id": 1,
                "bbox": [10, 40, 30, 30],
                "segmentation": [
                    {
                        "exterior": [[10, 40], [10, 69], [39, 69], [39, 40]],
                        "interiors": [[[20, 50], [30, 50], [30, 60]]],
                    }
                ],
            },
        ],
    },
    expected=[[("cup", 900, 0), ("cup", 29 * 29 - drawn([20, 50, 30, 50, 30, 60]), 0)]],
    off=1,
)

EXPORTS = {
    "supervision": SUPERVISION,
    "datumaro": DATUMARO,
    "label_studio": LABEL_STUDIO,
    "label_studio_brush": LABEL_STUDIO_BRUSH,
    "sahi": SAHI,
    "hotcoco": HOTCOCO,
    "globox": GLOBOX,
    "kwcoco": KWCOCO,
}


def laid_out(folder: Path, export: Export) -> None:
    """Writes an export as its tool does."""
    for name in (export.file, *export.pictures):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name in export.pictures:
        kind = "PNG" if name.endswith(".png") else "JPEG"
        (folder / name).write_bytes(picture(WIDE, HIGH, kind))
    (folder / export.file).write_text(json.dumps(export.content))


@pytest.mark.parametrize("tool", EXPORTS)
def test_an_export_is_read(tmp_path: Path, tool: str) -> None:
    export = EXPORTS[tool]
    laid_out(tmp_path, export)
    index = coco.load(tmp_path / export.file, tmp_path / export.images)
    problems = Problems()
    records = [index.record(i, problems) for i in range(len(index))]
    names = {category.id: category.name for category in index.categories}
    assert names == {c["id"]: c["name"] for c in export.content["categories"]}
    assert [record["image_id"] for record in records] == [
        image["id"] for image in export.content["images"]
    ]
    seen = []
    for record in records:
        seen.append([])
        for one in record["annotations"]:
            rle = one["segmentation"]
            pixels = int(pycocotools.area(rle))
            seen[-1].append((names[one["category_id"]], pixels, one["iscrowd"]))
            x, y, w, h = one["bbox"]
            left, top, wide, high = pycocotools.toBbox(rle)
            corners = np.abs([x - left, y - top, x + w - left - wide, y + h - top - high])
            assert corners.max() <= export.off, f"{tool}: {one['bbox']}"
    assert seen == export.expected
    kept = sum(map(len, seen))
    assert kept + export.left_out == len(export.content["annotations"])
    assert sum(n for kind, n in problems.counts.items() if "left out" in kind) == export.left_out


def test_runs_are_those_of_pycocotools() -> None:
    mask = np.zeros((HIGH, WIDE), np.uint8, order="F")
    mask[10:20, 30:40] = mask[10:20, 50:60] = 1
    rle = {"size": [HIGH, WIDE], "counts": runs((30, 10, 10), (50, 10, 10))}
    assert pycocotools.frPyObjects(rle, HIGH, WIDE) == pycocotools.encode(mask)
