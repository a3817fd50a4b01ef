"""Whole files: real ones as pycocotools reads them, and what other programs write."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from coco_folder import annotation, image, picture, write
from coco_read import read
from pycocotools.coco import COCO

from autotimm.coco import index as coco
from autotimm.coco import layouts, masks
from autotimm.coco.checks import Problems
from autotimm.structures import Annotation, InputError


@pytest.mark.parametrize("name", ["coco_mini", "fruits_nuts", "balloon", "microscopy_flakes"])
def test_real_records_equal_pycocotools(shared_data: Path, name: str) -> None:
    for split in layouts.find_splits(shared_data / name).values():
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(split.annotation_file))
        index = coco.load(split.annotation_file, split.image_folder)
        assert [c.id for c in index.categories] == sorted(truth.cats)
        assert [c.name for c in index.categories] == [
            truth.cats[c.id]["name"] for c in index.categories
        ]
        assert len(index) == len(truth.imgs)
        for i in range(len(index)):
            record = index.record(i)
            expected = truth.imgs[record["image_id"]]
            assert index.image_path(i).samefile(split.image_folder / expected["file_name"])
            assert {k: expected[k] for k in ("file_name", "width", "height")} == {
                k: record[k] for k in ("file_name", "width", "height")
            }
            originals = truth.imgToAnns[record["image_id"]]
            assert len(originals) == len(record["annotations"])
            for got, original in zip(record["annotations"], originals, strict=True):
                for key in ("id", "category_id", "bbox", "area", "iscrowd"):
                    assert got[key] == original[key], key
                if isinstance(original["segmentation"], list):
                    assert got["polygons"] == original["segmentation"]
                else:
                    assert "polygons" not in got
                assert got["segmentation"]["size"] == [record["height"], record["width"]]


# What exporters write besides: nothing of it is odd.
EXPORTERS = {
    "cvat": (
        {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0},
        {
            "attributes": {"occluded": False, "parts": [{"a": 1}, {"b": 2}]},
            "iscrowd": 1,
            "bbox": [2, 0, 2, 48],
            "segmentation": {"counts": [100, 50, 48 * 64 - 150], "size": [48, 64]},
        },
    ),
    "coco-annotator": (
        {
            "dataset_id": 1,
            "path": "/datasets/x/a.jpg",
            "annotated": False,
            "deleted": False,
            "category_ids": [],
            "annotating": [],
            "metadata": {},
            "events": [],
            "num_annotations": 1,
        },
        {"isbbox": False, "color": "#a1b2c3", "metadata": {"name": "}, {"}, "creator": "x"},
    ),
    "labelme2coco": ({}, {"bbox": [10, 8, 20, 20], "area": 400}),
    "roboflow": (
        {"license": 1, "date_captured": "2020-11-03T00:00:00+00:00", "extra": {"name": "a.png"}},
        {"segmentation": dict(masks.encode(np.eye(48, 64) > 0)), "bbox": [0, 0, 48, 48]},
    ),
}


@pytest.mark.parametrize("name", EXPORTERS)
def test_what_exporters_write(tmp_path: Path, name: str) -> None:
    of_image, of_annotation = EXPORTERS[name]
    records, problems = read(
        tmp_path, images=[image(**of_image)], annotations=[annotation(**of_annotation)]
    )
    assert not problems and len(records[0]["annotations"]) == 1
    assert records[0]["annotations"][0].keys() <= set(Annotation.__annotations__)


def test_images_without_annotations_are_kept(tmp_path: Path) -> None:
    records, problems = read(tmp_path, annotations=[])
    assert records == [
        {"image_id": 1, "file_name": "a.jpg", "width": 64, "height": 48, "annotations": []}
    ]
    assert not problems


def test_annotation_bytes_are_about_the_records(shared_data: Path) -> None:
    for name in ("coco_mini", "fruits_nuts", "balloon", "microscopy_flakes"):
        for split in layouts.find_splits(shared_data / name).values():
            index = coco.load(split.annotation_file, split.image_folder)
            expected = sum(index.annotation_bytes(i) for i in range(len(index)))
            real = sum(len(json.dumps(index.record(i))) for i in range(len(index)))
            assert 0.6 * real < expected < 1.5 * real


@pytest.mark.parametrize("number", range(17))
def test_deliberately_invalid_files(shared_data: Path, tmp_path: Path, number: int) -> None:
    file = shared_data / "odd" / "labelme2coco_invalid" / f"coco_false_{number}.json"
    with pytest.raises(InputError) as error:  # the least: their images are not there
        coco.load(file, tmp_path)
    assert str(file) in str(error.value) and "\n" not in str(error.value)

    from PIL import Image

    for name in ("example1", "example2"):
        path = tmp_path / "data" / "midv500" / "images" / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (800, 800)).save(path)
    try:
        index = coco.load(file, tmp_path)
    except InputError as refusal:
        assert str(file) in str(refusal) and "\n" not in str(refusal)
        return
    problems = Problems()
    problems.update(index.problems)
    kept = sum(len(index.record(i, problems)["annotations"]) for i in range(len(index)))
    usual = {"width or height missing (picture's taken)", "iscrowd missing (0 taken)"}
    assert set(problems.counts) - usual
    left_out = sum(count for kind, count in problems.counts.items() if "left out)" in kind)
    assert kept < len(json.loads(file.read_text())["annotations"]) <= kept + left_out


def test_boxes_only_data_says_so(shared_data: Path) -> None:
    folder = shared_data / "odd" / "roboflow_boxes_only"
    index = coco.load(folder / "_annotations.coco.json", folder)
    problems = Problems()
    assert not any(index.record(i, problems)["annotations"] for i in range(len(index)))
    assert problems.counts == {"no segmentation (instance left out)": 52}


def test_reading_does_not_need_a_listable_parent(tmp_path: Path) -> None:
    """Paths are resolved once, so that a later change of the working directory moves nothing."""
    write(tmp_path)
    before = Path.cwd()
    try:
        os.chdir(tmp_path)
        index = coco.load(Path("annotations/instances_train.json"), Path("train"))
    finally:
        os.chdir(before)
    assert index.image_path(0).read_bytes() == picture()
