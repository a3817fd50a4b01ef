"""Data sets as tools lay them out: every image is found, and its split named."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from coco_folder import annotation, image, picture

from autotimm.coco import layouts
from autotimm.coco.join import load_split
from autotimm.coco.layouts import find_splits
from autotimm.coco.split_names import same_split
from autotimm.structures import InputError

CATEGORIES = [{"id": 1, "name": "box"}, {"id": 2, "name": "disc"}]


def put(root: Path, file: str, images: str, count: int = 2, name: str = "{}.jpg") -> None:
    """An annotation file whose ``count`` images lie in a folder, named by ``name``."""
    entries, annotations = [], []
    for n in range(1, count + 1):
        path = root / images / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture())
        entries.append(image(id=n, file_name=name.format(n)))
        annotations.append(annotation(id=n, image_id=n, category_id=1 + n % 2))
    content = {"images": entries, "annotations": annotations, "categories": CATEGORIES}
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))


def counts(root: Path) -> dict[str, int]:
    """The images of each split; none may be lost, nor an instance of it."""
    found = {}
    for name, split in find_splits(root).items():
        index = load_split(split)
        left_out = {kind for kind in index.problems.counts if "left out" in kind}
        assert name == split.name and not left_out
        assert all(index.image_path(i).is_file() for i in range(len(index)))
        assert all(len(index.record(i)["annotations"]) == 1 for i in range(len(index)))
        found[name] = len(index)
    return found


# Annotation file, folder of the images, how many, how they are named: by the splits' names.
Row = tuple[str, str, int, str]
LAYOUTS: dict[str, tuple[list[Row], dict[str, int]]] = {
    "LVIS": (
        [
            ("lvis_v1_train.json", "train2017", 3, "{}.jpg"),
            ("lvis_v1_val.json", "val2017", 2, "{}.jpg"),
        ],
        {"train": 3, "val": 2},
    ),
    "Cityscapes by a converter": (
        [
            ("annotations/only_gtFine_train.json", "leftImg8bit/train/aachen", 3, "aachen/{}.jpg"),
            ("annotations/only_gtFine_val.json", "leftImg8bit/val/bonn", 2, "{}.jpg"),
        ],
        {"train": 3, "val": 2},
    ),
    "the data set's name in all names": (
        [
            ("annotations/Set2019_train_coco.json", "Set2019-DET-train/images", 3, "{}.jpg"),
            ("annotations/Set2019_val_coco.json", "Set2019-DET-val/images", 2, "{}.jpg"),
        ],
        {"train": 3, "val": 2},
    ),
    "other words of the folders": (
        [
            ("annotations/instance_train.json", "images/training", 3, "{}.jpg"),
            ("annotations/instance_val.json", "images/validation", 2, "{}.jpg"),
        ],
        {"train": 3, "val": 2},
    ),
    "capitals": ([("Annotations.JSON", "images", 3, "{}.jpg")], {"train": 3}),
    "COCO": (
        [
            ("annotations/instances_train2017.json", "train2017", 3, "{}.jpg"),
            ("annotations/instances_val2017.json", "val2017", 2, "{}.jpg"),
        ],
        {"train": 3, "val": 2},
    ),
    "COCO beside its folders": (
        [
            ("instances_train2017.json", "train2017", 3, "{}.jpg"),
            ("instances_val2017.json", "val2017", 2, "{}.jpg"),
        ],
        {"train": 3, "val": 2},
    ),
    "Roboflow": (
        [
            (f"{split}/_annotations.coco.json", split, count, "{}.jpg")
            for split, count in (("train", 3), ("valid", 2), ("test", 1))
        ],
        {"train": 3, "valid": 2, "test": 1},
    ),
    "CVAT": (
        [("annotations/instances_default.json", "images/default", 3, "{}.jpg")],
        {"train": 3},
    ),
    "CVAT, older": ([("annotations/instances_default.json", "images", 3, "{}.jpg")], {"train": 3}),
    "CVAT, subsets": (
        [
            ("annotations/instances_train.json", "images/train", 3, "{}.jpg"),
            ("annotations/instances_default.json", "images/default", 2, "{}.jpg"),
        ],
        {"train": 3, "default": 2},
    ),
    "Label Studio": ([("result.json", "images", 3, "images/{}.jpg")], {"train": 3}),
    "Label Studio, older": ([("result_coco.json", "images", 3, "{}.jpg")], {"train": 3}),
    "FiftyOne": ([("labels.json", "data", 3, "{}.jpg")], {"train": 3}),
    "FiftyOne with splits": (
        [
            ("train/labels.json", "train/data", 3, "{}.jpg"),
            ("validation/labels.json", "validation/data", 2, "{}.jpg"),
        ],
        {"train": 3, "validation": 2},
    ),
    "one file beside its images": ([("whatever I like.json", "", 3, "{}.jpg")], {"train": 3}),
    "one file, images in a folder of any name": (
        [("export.json", "photos/2024", 3, "{}.jpg")],
        {"train": 3},
    ),
    "names with folders": ([("export.json", "photos/a", 3, "photos/a/{}.jpg")], {"train": 3}),
    "names with absolute paths": (
        [("dataset.json", "photos", 3, "/home/me/x/photos/{}.jpg")],
        {"train": 3},
    ),
    "Datumaro": (
        [
            ("annotations/instances_train.json", "images/train", 3, "{}.jpg"),
            ("annotations/instances_val.json", "images/val", 2, "{}.jpg"),
        ],
        {"train": 3, "val": 2},
    ),
    "supervision": (
        [
            ("train/annotations.json", "train/images", 3, "{}.jpg"),
            ("val/annotations.json", "val/images", 2, "{}.jpg"),
        ],
        {"train": 3, "val": 2},
    ),
    "a folder of annotations in each split": (
        [
            ("train/annotations/instances.json", "train/images", 3, "{}.jpg"),
            ("test/annotations/instances.json", "test/images", 2, "{}.jpg"),
        ],
        {"train": 3, "test": 2},
    ),
    "annotations by split": (
        [
            ("annotations/train.json", "images/train", 3, "{}.jpg"),
            ("annotations/val.json", "images/val", 2, "{}.jpg"),
        ],
        {"train": 3, "val": 2},
    ),
    "files by split, folders by split": (
        [("train.json", "train", 3, "{}.jpg"), ("val.json", "val", 2, "{}.jpg")],
        {"train": 3, "val": 2},
    ),
    "labels beside data": (
        [
            ("labels/train.json", "data/train", 3, "{}.jpg"),
            ("labels/val.json", "data/val", 2, "{}.jpg"),
        ],
        {"train": 3, "val": 2},
    ),
    "SAHI": ([("flakes_coco.json", "flakes_images", 3, "{}.jpg")], {"train": 3}),
    "words in the names": (
        [
            ("annotations/coco_train2024.json", "images/train2024", 3, "{}.jpg"),
            ("annotations/coco_val2024.json", "images/val2024", 2, "{}.jpg"),
        ],
        {"train": 3, "val": 2},
    ),
    "capital letters": (
        [
            ("Annotations/Instances_Train.json", "Images/Train", 3, "{}.jpg"),
            ("Annotations/Instances_Val.json", "Images/Val", 2, "{}.jpg"),
        ],
        {"train": 3, "val": 2},
    ),
    "capital letters, one file": (
        [("Annotations/all.json", "JPEGImages", 3, "{}.jpg")],
        {"train": 3},
    ),
    "batches": (
        [("monday/a.json", "monday", 3, "{}.jpg"), ("tuesday/b.json", "tuesday", 2, "{}.jpg")],
        {"monday": 3, "tuesday": 2},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path: Path, name: str) -> None:
    rows, expected = LAYOUTS[name]
    for row in rows:
        put(tmp_path, *row)
    assert counts(tmp_path) == expected


def test_lvis_names_its_images_by_urls_of_two_folders(tmp_path: Path) -> None:
    """Its validation images lie in COCO's folders of both splits, by the same numbers."""
    put(tmp_path, "a.json", "train2017", 2)
    put(tmp_path, "lvis_v1_val.json", "val2017", 3)
    (tmp_path / "a.json").unlink()
    file = tmp_path / "lvis_v1_val.json"
    content = json.loads(file.read_text())
    for folder, entry in zip(("val2017", "train2017", "val2017"), content["images"], strict=True):
        name = entry.pop("file_name")
        entry["coco_url"] = f"http://images.cocodataset.org/{folder}/{name}"
    file.write_text(json.dumps(content))
    [split] = find_splits(tmp_path).values()
    index = load_split(split)
    assert [index.file_name(i) for i in range(len(index))] == [
        *("val2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg")
    ]


def test_one_folder_of_images_for_all_splits(tmp_path: Path) -> None:
    put(tmp_path, "train.json", "images", 4)
    put(tmp_path, "val.json", "images", 2)
    assert counts(tmp_path) == {"train": 4, "val": 2}


def test_cocos_other_files_are_not_taken_for_instances(tmp_path: Path) -> None:
    put(tmp_path, "annotations/instances_train2017.json", "train2017")
    for other in ("person_keypoints", "captions", "panoptic", "stuff"):
        (tmp_path / f"annotations/{other}_train2017.json").write_text("{}")
    assert counts(tmp_path) == {"train": 2}
    (tmp_path / "annotations/instances_train2017.json").rename(tmp_path / "annotations/train.json")
    assert counts(tmp_path) == {"train": 2}


def test_what_lies_beside_is_left_alone(tmp_path: Path) -> None:
    """Files of programs, results, captions: only what may hold instances is taken."""
    put(tmp_path, "data.json", "images")
    row = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    captions = {"images": [image()], "annotations": [{"image_id": 1, "caption": "a"}]}
    for other, content in (("info", {"name": "x"}), ("results", [row]), ("words", captions)):
        (tmp_path / f"{other}.json").write_text(json.dumps(content))
    (tmp_path / "empty.json").touch()
    (tmp_path / "folder.json").mkdir()
    assert counts(tmp_path) == {"train": 2}


def test_instances_behind_megabytes_of_others(tmp_path: Path) -> None:
    """Lists and names at the end of a large file are found, and so is a gzipped file's kind."""
    put(tmp_path, "a.json", "images")
    content = json.loads((tmp_path / "a.json").read_text())
    padding = {"info": {"notes": "x" * 9_000_000}}
    (tmp_path / "a.json").write_text(json.dumps({**padding, **content}))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b'{"name": "x"}'))
    (tmp_path / "c.json.gz").write_bytes(b"\x1f\x8bcut")
    assert counts(tmp_path) == {"train": 2}


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_packed_files(tmp_path: Path, suffix: str) -> None:
    for split in ("train", "val"):
        put(tmp_path, f"{split}.json", split)
        data = (tmp_path / f"{split}.json").read_bytes()
        (tmp_path / f"{split}.json").unlink()
        with zipfile.ZipFile(tmp_path / f"{split}.json{suffix}", "w") as archive:
            archive.writestr("labels.json", data)
    assert counts(tmp_path) == {"train": 2, "val": 2}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_windows_tools(tmp_path: Path, encoding: str) -> None:
    put(tmp_path, "a.json", "images")
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text(), encoding=encoding)
    (tmp_path / "b.json").write_text("{}", encoding=encoding)
    assert counts(tmp_path) == {"train": 2}


AMBIGUOUS: dict[str, tuple[list[str], tuple[str, str]]] = {
    "two of any name": (["a.json", "b.json"], ("a.json", "b.json")),
    "one of a split, one of all": (
        ["annotations/train.json", "annotations/all.json"],
        ("train", "all"),
    ),
    "two of one split": (["train_a.json", "train_b.json"], ("train_a.json", "train_b.json")),
    "two in a split's folder": (["train/a.json", "train/b.json"], ("a.json", "b.json")),
    "two usual names": (["labels.json", "result.json"], ("labels.json", "result.json")),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_two_readings_are_refused(tmp_path: Path, name: str) -> None:
    files, shown = AMBIGUOUS[name]
    for file in files:
        put(tmp_path, file, "images")
    with pytest.raises(InputError) as error:
        find_splits(tmp_path)
    message = str(error.value)
    assert all(part in message for part in shown) and "\n" not in message
    assert "--annotations FILE --images FOLDER" in message


@pytest.mark.parametrize("masks", ["ann_dir", "gt", "annotations/masks"])
def test_masks_of_the_images_names_are_not_taken_for_images(tmp_path: Path, masks: str) -> None:
    for split in ("train", "val"):
        for folder in (masks, "img_dir"):
            put(tmp_path, f"{split}.json", f"{folder}/{split}")
    for split, found in find_splits(tmp_path).items():
        assert found.image_folder == tmp_path / "img_dir" / split


def test_two_folders_of_the_images_names_are_refused(tmp_path: Path) -> None:
    for folder in ("rgb/train", "thermal/train"):
        put(tmp_path, "train.json", folder)
    with pytest.raises(InputError, match=r"rgb/train and .*thermal/train both have .*--images"):
        find_splits(tmp_path)
    (tmp_path / "train").symlink_to(tmp_path / "thermal/train")  # called as usual
    assert find_splits(tmp_path)["train"].image_folder == tmp_path / "train"


def test_files_are_not_asked_whether_they_are_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be millions beside an annotation file."""
    put(tmp_path, "train.json", "", 5)
    (tmp_path / "loop").symlink_to("loop")
    asked: list[str] = []
    stat = os.stat

    def watched(path: Any, **options: Any) -> os.stat_result:
        asked.append(str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", watched)
    assert find_splits(tmp_path)["train"].image_folder == tmp_path
    monkeypatch.undo()
    # Whether it is there, which is asked of the first few names alone.
    assert {asked.count(str(tmp_path / f"{n}.jpg")) for n in range(1, 6)} == {1}


def test_a_split_without_images_takes_none_of_another(tmp_path: Path) -> None:
    """The validation images are missing, and those of training have the same names."""
    put(tmp_path, "annotations/instances_train.json", "train")
    put(tmp_path, "annotations/instances_val.json", "elsewhere/val")
    (tmp_path / "elsewhere").rename(tmp_path.parent / f"{tmp_path.name}-gone")
    splits = find_splits(tmp_path)
    assert splits["val"].image_folder == tmp_path / "val"
    for split in ("train", "val"):
        (tmp_path / f"annotations/instances_{split}.json").rename(tmp_path / f"{split}.json")
    splits = find_splits(tmp_path)
    assert splits["train"].image_folder == tmp_path / "train"
    assert splits["val"].image_folder == tmp_path / "val"


def test_the_folder_inside_is_named(tmp_path: Path) -> None:
    put(tmp_path, "My data-3/train/_annotations.coco.json", "My data-3/train")
    with pytest.raises(InputError, match="My data-3 has some: give that folder"):
        find_splits(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "names", "meant"),
    [
        ("val", ["train", "valid"], "valid"),
        ("val", ["train", "validation"], "validation"),
        ("valid", ["train", "val"], "val"),
        ("val", ["val", "valid"], "val"),
        ("val", ["valid", "validation"], None),
        ("train", ["training"], "training"),
        ("test", ["train", "val"], None),
        ("train", ["Train", "Validation"], "Train"),
        ("val", ["Train", "Validation"], "Validation"),
        ("train", ["train", "Train"], "train"),
        ("val", ["train_trashcan", "val_trashcan"], "val_trashcan"),
        ("val", ["val_a", "val_b"], None),
        ("extra", ["train"], None),
    ],
)
def test_usual_names_of_one_split(wanted: str, names: list[str], meant: str | None) -> None:
    assert same_split(wanted, names) == meant


LINE = "0 0.1 0.1 0.5 0.1 0.5 0.6\n1 0.2 0.2 0.5 0.2 0.5 0.7\n"
VOC = "<annotation><filename>1.jpg</filename><object><name>a</name></object></annotation>"
CVAT = "<?xml version='1.0'?>\n<annotations><version>1.1</version></annotations>"
LABELME = {"version": "5.4", "shapes": [], "imagePath": "1.jpg", "imageData": None}
SEGMENT = {"id": 7, "category_id": 1, "area": 9, "bbox": [1, 1, 3, 3], "iscrowd": 0}
PANOPTIC = {
    "images": [image()],
    "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": [SEGMENT]}],
    "categories": CATEGORIES,
}
TASK = [{"id": 1, "data": {"image": "/data/upload/1.jpg"}, "annotations": [{"result": []}]}]
REGION = {"shape_attributes": {"name": "polygon", "all_points_x": [1], "all_points_y": [2]}}
VIA = {"_via_img_metadata": {"1.jpg9": {"filename": "1.jpg", "size": 9, "regions": [REGION]}}}
SUPERVISELY = {"size": {"width": 9, "height": 9}, "objects": [{"classTitle": "a"}]}
CITYSCAPES = {"imgHeight": 9, "imgWidth": 9, "objects": [{"label": "car", "polygon": [[1, 2]]}]}
DICTS = [{"file_name": "1.jpg", "annotations": [{"bbox": [0, 0, 9, 9], "bbox_mode": 0}]}]
CREATE_ML = [{"image": "1.jpg", "annotations": [{"label": "a", "coordinates": {"x": 1, "y": 2}}]}]
OTHERS: dict[str, tuple[dict[str, str], str]] = {
    "YOLO": (
        {"data.yaml": "names: [a, b]\n", "labels/train/1.txt": LINE, "images/train/1.jpg": ""},
        "supervision.DetectionDataset.from_yolo('{root}/images/train', '{root}/labels/train', "
        "'{root}/data.yaml')",
    ),
    "YOLO without its settings": ({"train/labels/1.txt": LINE}, "'{root}/train/images'"),
    "YOLO's settings alone": ({"coco8.yaml": "nc: 1\nnames:\n  0: a\n"}, "from_yolo"),
    "YOLO's boxes": ({"labels/1.txt": "0 0.5 0.5 0.2 0.2\n"}, "no mask to train on"),
    "Pascal VOC": (
        {"Annotations/1.xml": VOC, "SegmentationObject/1.png": ""},
        "datum convert -if voc -i {root} -f coco_instances",
    ),
    "Pascal VOC's boxes": ({"Annotations/1.xml": VOC}, "no mask to train on"),
    "CVAT's XML": ({"annotations.xml": CVAT}, "datum convert -if cvat -i {root}"),
    "labelme": (
        {"1.json": json.dumps(LABELME), "2.json": json.dumps(LABELME)},
        "labelme2coco {root} --export_dir {root}",
    ),
    "labelme by split": ({"train/1.json": json.dumps(LABELME)}, "labelme2coco"),
    "panoptic": (
        {"annotations/panoptic_train2017.json": json.dumps(PANOPTIC)},
        "datum convert -if coco_panoptic",
    ),
    "panoptic of another name": ({"train.json": json.dumps(PANOPTIC)}, "-if coco_panoptic"),
    "Label Studio's JSON": ({"project-1.json": json.dumps(TASK)}, "as COCO with images"),
    "VIA": ({"via.json": json.dumps(VIA)}, "Export Annotations (COCO format)"),
    "Supervisely": ({"ds0/ann/1.jpg.json": json.dumps(SUPERVISELY)}, "Export to COCO"),
    "Cityscapes": ({"gtFine/1_polygons.json": json.dumps(CITYSCAPES)}, "MMDetection"),
    "Detectron2": ({"train.json": json.dumps(DICTS)}, "convert_to_coco_json"),
    "Create ML": ({"_annotations.createml.json": json.dumps(CREATE_ML)}, "no mask to train on"),
    "Datumaro": (
        {"annotations/train.json": json.dumps({"infos": {}, "categories": {}, "items": []})},
        "datum convert -if datumaro",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_refused_with_what_converts_them(tmp_path: Path, name: str) -> None:
    files, command = OTHERS[name]
    root = tmp_path / "data"
    for file, text in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    with pytest.raises(InputError) as error:
        find_splits(root)
    assert command.format(root=root) in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(f"{root}: holds ")
    put(root, "instances_train.json", "train")
    assert counts(root) == {"train": 2}, "what is there in COCO's format is taken"


def test_text_and_settings_of_no_format(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("1 2 3 go")
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    (tmp_path / "pom.xml").write_text("<project/>")
    with pytest.raises(InputError, match=r"no annotations/instances_\*\.json in it"):
        find_splits(tmp_path)


ROOF = {"id": 0, "name": "things", "supercategory": "none"}
UNDER = [{"id": n, "name": f"c{n}", "supercategory": "things"} for n in (1, 2)]


@pytest.mark.parametrize(
    ("categories", "used", "told"),
    [
        ([ROOF, *UNDER], {1, 2}, True),
        ([ROOF, *CATEGORIES], {1}, True),  # the others need not name it
        ([ROOF, *UNDER], {0, 1}, False),  # a class like the others
        ([ROOF, {"id": 1, "name": "b", "supercategory": "none"}], {1}, False),  # no hierarchy
        ([ROOF], set(), False),
        (UNDER, {1}, False),
    ],
)
def test_roboflows_class_of_all_others_is_told_and_kept(
    tmp_path: Path, categories: list[dict], used: set[int], told: bool
) -> None:
    put(tmp_path, "train/_annotations.coco.json", "train", 2)
    file = tmp_path / "train/_annotations.coco.json"
    content = json.loads(file.read_text())
    annotations = [annotation(id=n, category_id=n) for n in sorted(used)]
    file.write_text(json.dumps(content | {"categories": categories, "annotations": annotations}))
    index = load_split(find_splits(tmp_path)["train"])
    assert [c.id for c in index.categories] == [c["id"] for c in categories]
    lines = [line for line in index.problems.lines() if "for the others' group" in line]
    assert (
        lines
        == [
            "category without annotations for the others' group, as Roboflow's (kept; harmless): 1 "
            "(things (id 0))"
        ]
        * told
    )


def test_splits_are_found_under_any_of_the_usual_names(tmp_path: Path) -> None:
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    for name in ("train2017", "val2014", "val2017", "test-2", "2020", "extra", "none"):
        (annotations / f"instances_{name}.json").touch()
    (annotations / "captions_train2017.json").touch()
    there = ("train2017", "images/val2014", "val2017", "test", "images/extra")
    # What another tool has left under the short name is not what the file is of.
    for folder in (*there, "train", "images/train"):
        (tmp_path / folder).mkdir(parents=True)
    splits = layouts.find_splits(tmp_path)
    assert {
        name: s.image_folder.relative_to(tmp_path).as_posix() for name, s in splits.items()
    } == {
        "train": "train2017",
        "val2014": "images/val2014",
        "val2017": "val2017",
        "test": "test",
        "2020": "images",
        "extra": "images/extra",
        "none": "images",
    }
    assert all(name == split.name for name, split in splits.items())


def test_folders_without_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        layouts.find_splits(tmp_path / "gone")
    with pytest.raises(InputError, match="annotations/instances_"):
        layouts.find_splits(tmp_path)


def test_an_annotations_folder_that_cannot_be_read_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "annotations").mkdir(mode=0o000)
    if os.geteuid() == 0:  # who may read anything

        def refuse(path: object) -> list[str]:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

        monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="annotations: cannot be read: Permission denied"):
        layouts.find_splits(tmp_path)


@pytest.mark.parametrize("depth", ["a", "a/b"])
def test_a_data_set_further_in_is_named(tmp_path: Path, depth: str) -> None:
    put(tmp_path, f"{depth}/annotations/instances_train.json", f"{depth}/train")
    with pytest.raises(InputError, match=f"but .*/{depth} has some: give that folder"):
        find_splits(tmp_path)


@pytest.mark.parametrize("depth", ["", "a", "a/b"])
def test_a_conversion_is_of_the_folder_that_has_the_files(tmp_path: Path, depth: str) -> None:
    voc, panoptic = tmp_path / "voc" / depth, tmp_path / "panoptic" / depth
    for folder in ("Annotations", "SegmentationObject"):
        (voc / folder).mkdir(parents=True)
    (voc / "Annotations/1.xml").write_text("<annotation><object/></annotation>")
    (panoptic / "annotations").mkdir(parents=True)
    content = {"images": [], "annotations": [{"segments_info": []}], "categories": []}
    (panoptic / "annotations/panoptic_train.json").write_text(json.dumps(content))
    for name, folder in (("voc", voc), ("panoptic", panoptic)):
        with pytest.raises(InputError, match=f"-i {re.escape(str(folder))} -f"):
            find_splits(tmp_path / name)


def test_a_folder_of_more_words_than_the_split_is_not_taken_where_another_fits(
    tmp_path: Path,
) -> None:
    """val_small/ may hold other pictures of the same names."""
    put(tmp_path, "val.json", "val_small")
    assert find_splits(tmp_path)["val"].image_folder == tmp_path / "val_small"
    put(tmp_path, "val.json", "images")
    with pytest.raises(InputError, match=r"val_small and .*images both have .*--images"):
        find_splits(tmp_path)
    put(tmp_path, "val.json", "val2017")
    with pytest.raises(InputError, match=r"val2017 and .*val_small both have"):
        find_splits(tmp_path)
    shutil.rmtree(tmp_path / "val_small")
    assert find_splits(tmp_path)["val"].image_folder == tmp_path / "val2017"
