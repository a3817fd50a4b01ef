"""COCO files, sound and odd: what is kept, what is mended, what is left out and said."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import json
import os
import pickle
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_folder import SQUARE, annotation, image, picture, write
from pycocotools.coco import COCO

from autotimm.coco import index as coco
from autotimm.coco import jsontext, layouts, lists, masks
from autotimm.coco.checks import Problems, as_id, check_annotation
from autotimm.coco.ids import id_key
from autotimm.structures import Annotation, InputError, Record

NAN = float("nan")


def load(root: Path, **content: Any) -> coco.CocoIndex:
    write(root, **content)
    return coco.load(root / "annotations" / "instances_train.json", root / "train")


def read(root: Path, **content: Any) -> tuple[list[Record], dict[str, int]]:
    """Loads a folder made of ``content``: all records, and what was odd."""
    index = load(root, **content)
    problems = Problems()
    problems.update(index.problems)
    records = [index.record(i, problems) for i in range(len(index))]
    assert [index.record(i) for i in range(len(index))] == records, "a second look changes nothing"
    return records, problems.counts


def refused(root: Path, **content: Any) -> str:
    with pytest.raises(InputError) as error:
        load(root, **content)
    assert "\n" not in str(error.value)
    return str(error.value)


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


def test_a_sound_record(tmp_path: Path) -> None:
    records, problems = read(tmp_path)
    assert not problems
    (only,) = records[0].pop("annotations")
    assert records[0] == {"image_id": 1, "file_name": "a.jpg", "width": 64, "height": 48}
    dense = np.zeros((48, 64), np.uint8)
    dense[8:28, 10:30] = 1
    assert np.array_equal(masks.decode(only.pop("segmentation")), dense)
    assert only == {
        "id": 1,
        "category_id": 3,
        "bbox": [10.0, 8.0, 20.0, 20.0],
        "area": 400.0,
        "iscrowd": 0,
        "polygons": SQUARE,
    }


# What is mended: one annotation is kept, and the one oddity counted.
MENDED = {
    "bbox missing": ({"bbox": ...}, "bbox missing (mask's taken)"),
    "bbox null": ({"bbox": None}, "bbox missing (mask's taken)"),
    "bbox short": ({"bbox": [1, 2, 3]}, "bbox is not four finite numbers (mask's taken)"),
    "bbox nan": ({"bbox": [1, 2, NAN, 4]}, "bbox is not four finite numbers (mask's taken)"),
    "bbox text": ({"bbox": ["1", "2", "3", "4"]}, "bbox is not four finite numbers (mask's taken)"),
    "bbox vast": ({"bbox": [1, 2, 3, 10**400]}, "bbox is not four finite numbers (mask's taken)"),
    "bbox flat": ({"bbox": [1, 2, 0, 4]}, "bbox without an area (mask's taken)"),
    "bbox negative": ({"bbox": [1, 2, 3, -4]}, "bbox without an area (mask's taken)"),
    "area missing": ({"area": ...}, "area missing (mask's taken)"),
    "area nan": ({"area": NAN}, "area is not a positive number (mask's taken)"),
    "area vast": ({"area": 10**30}, "area is not a positive number (mask's taken)"),
    "area zero": ({"area": 0}, "area is not a positive number (mask's taken)"),
    "iscrowd missing": ({"iscrowd": ...}, "iscrowd missing (0 taken)"),
    "id missing": ({"id": ...}, "annotation id missing or not a whole number (numbered anew)"),
    "id text": ({"id": "x"}, "annotation id missing or not a whole number (numbered anew)"),
    "one part odd": (
        {"segmentation": [*SQUARE, [1, 2, 3, 4, 5]]},
        "polygon with fewer than 3 points (part left out)",
    ),
}


@pytest.mark.parametrize("name", MENDED)
def test_mended(tmp_path: Path, name: str) -> None:
    changes, kind = MENDED[name]
    records, problems = read(tmp_path, annotations=[annotation(**changes)])
    assert problems == {kind: 1}
    (only,) = records[0]["annotations"]
    assert only["bbox"] == [10, 8, 20, 20] and only["area"] == 400 and only["iscrowd"] == 0
    assert (
        only["polygons"] == SQUARE and only["id"] == 1 and masks.area(only["segmentation"]) == 400
    )


# What is left out: no annotation is kept, and the one oddity counted.
LEFT_OUT = {
    "no segmentation (instance left out)": [..., None, [], {}],
    "polygon with fewer than 3 points (instance left out)": [[[]], [[1, 2, 3, 4]]],
    "polygon with an odd number of coordinates (instance left out)": [[[1, 2, 3, 4, 5, 6, 7]]],
    "polygon with a coordinate that is not finite (instance left out)": [[[1, 2, 3, 4, 5, NAN]]],
    "polygon is not a list of numbers (instance left out)": [[["a"] * 6], [[1, 2, 3, None, 5, 6]]],
    "segmentation is neither polygons nor RLE (instance left out)": ["abc", 7],
    "RLE of another size than the image (instance left out)": [
        {"size": [64, 48], "counts": [64 * 48]}
    ],
    "RLE counts do not fill the image (instance left out)": [{"size": [48, 64], "counts": [9, 9]}],
    "RLE without counts (instance left out)": [{"size": [48, 64]}],
    "mask covers no pixel (instance left out)": [
        [[1, 1, 1, 1, 1, 1]],
        {"size": [48, 64], "counts": [48 * 64]},
    ],
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_instances_left_out(tmp_path: Path, kind: str) -> None:
    odd = [annotation(id=n + 2, segmentation=s) for n, s in enumerate(LEFT_OUT[kind])]
    records, problems = read(tmp_path, annotations=[*odd, annotation()])
    assert problems == {kind: len(odd)}
    assert [a["id"] for a in records[0]["annotations"]] == [1]


@pytest.mark.parametrize(
    "corner", [(-10, 8), (10, -8), (54, 8), (10, 38)], ids=["left", "above", "right", "below"]
)
def test_polygons_that_leave_the_image_are_clipped_and_counted(
    tmp_path: Path, corner: tuple[int, int]
) -> None:
    (x, y), within = corner, [20.0, 20, 30, 20, 30, 28]
    outside = [x, y, x + 20, y, x + 20, y + 20, x, y + 20]  # of 64 x 48 pixels
    shapes: list[Any] = [[outside], [outside, within], [[1, 2], outside], [within]]
    edge = [[0, 0, 64, 0, 64, 48, 0, 48]]  # leaves nothing
    around = [min(x, 20), min(y, 20), max(x + 20, 30) - min(x, 20), max(y + 20, 28) - min(y, 20)]
    given = [[x, y, 20, 20], around, [x, y, 20, 20]]
    annotations = [
        annotation(id=n, segmentation=shapes[n], bbox=bbox) for n, bbox in enumerate(given)
    ]
    annotations.append(annotation(id=3, segmentation=shapes[3]))
    annotations.append(annotation(id=4, segmentation=edge, bbox=[0, 0, 64, 48]))
    records, problems = read(tmp_path, annotations=annotations)
    assert problems == {
        "polygon leaves the image (mask clipped)": 3,
        "polygon with fewer than 3 points (part left out)": 1,
    }
    dense = np.zeros((48, 64), np.uint8)
    dense[max(y, 0) : y + 20, max(x, 0) : x + 20] = 1
    first, _, third, _, whole = records[0]["annotations"]
    assert np.array_equal(masks.decode(first["segmentation"]), dense)
    assert third["segmentation"] == first["segmentation"]
    assert third["polygons"] == first["polygons"] == [outside]
    assert masks.area(whole["segmentation"]) == 48 * 64


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "true", " True "])
def test_crowd_however_it_is_written(tmp_path: Path, value: object) -> None:
    rle = {"size": [48, 64], "counts": [100, 50, 48 * 64 - 150]}
    crowd = annotation(iscrowd=value, segmentation=rle, bbox=[2, 0, 2, 48])
    records, problems = read(tmp_path, annotations=[crowd])
    assert records[0]["annotations"][0]["iscrowd"] == 1 and not problems
    assert type(records[0]["annotations"][0]["iscrowd"]) is int


def test_crowd_of_another_value_is_left_out(tmp_path: Path) -> None:
    records, problems = read(tmp_path, annotations=[annotation(iscrowd=2)])
    assert not records[0]["annotations"]
    assert problems == {"iscrowd is neither 0 nor 1 (instance left out)": 1}


def test_ids_as_text_and_floats(tmp_path: Path) -> None:
    records, problems = read(
        tmp_path,
        images=[image(id="5"), image(id=6.0, file_name="b.jpg", width="64", height=48.0)],
        annotations=[
            annotation(id="9", image_id=5, category_id="0"),
            annotation(id=10.0, image_id="6", category_id=12.0),
        ],
        categories=[{"id": "12", "name": "b"}, {"id": 0.0, "name": "a"}],
        files={"a.jpg": picture(), "b.jpg": picture()},
    )
    assert not problems
    assert [r["image_id"] for r in records] == [5, 6]
    assert [(a["id"], a["category_id"]) for r in records for a in r["annotations"]] == [
        (9, 0),
        (10, 12),
    ]
    assert all(type(r["width"]) is int and type(r["height"]) is int for r in records)


def test_ids_that_occur_twice(tmp_path: Path) -> None:
    records, problems = read(
        tmp_path,
        images=[image(), image(file_name="b.jpg")],
        annotations=[annotation(), annotation(category_id=7), annotation(id=41)],
        files={"a.jpg": picture(), "b.jpg": picture()},
    )
    assert [r["file_name"] for r in records] == ["a.jpg"]
    assert [(a["id"], a["category_id"]) for a in records[0]["annotations"]] == [
        (1, 3),
        (42, 7),
        (41, 3),
    ]
    assert problems == {
        "image id occurs twice (later image left out)": 1,
        "annotation id occurs twice (numbered anew)": 1,
    }


def test_annotations_that_belong_nowhere(tmp_path: Path) -> None:
    _, problems = read(
        tmp_path,
        images=[image(), image(id=2, file_name="gone.jpg")],
        annotations=[
            annotation(image_id=99),
            annotation(id=2, image_id=...),
            annotation(id=3, category_id=99),
            annotation(id=4, image_id=2),
            7,
            annotation(id=5),
        ],
    )
    assert problems == {
        "image file missing (image left out)": 1,
        "annotation of an unknown image (left out)": 2,
        "annotation of an unknown category (left out)": 1,
        "annotation of an image that is left out (left out)": 1,
        "annotation is not an object (left out)": 1,
    }


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"file_name": ...}, "no file_name"),
        ({"file_name": 7}, "no file_name"),
        ({"file_name": "../secret.jpg"}, "file_name leaves the image folder"),
        ({"file_name": "sub/../../secret.jpg"}, "file_name leaves the image folder"),
        ({"file_name": "/etc/hosts"}, "file_name leaves the image folder"),
        ({"file_name": ".."}, "file_name leaves the image folder"),
        ({"file_name": "a\0.jpg"}, "file_name holds a NUL character"),
        ({"file_name": "\ud800.jpg"}, "no file_name"),
        ({"file_name": "sub"}, "image file missing"),
        ({"file_name": "gone/x.jpg"}, "image file missing"),
        ({"file_name": "link.jpg"}, "link leaves the image folder"),
        ({"file_name": "linked/secret.jpg"}, "link leaves the image folder"),
        ({"file_name": "loop.jpg"}, "image cannot be opened"),
        ({"file_name": "loop.jpg/x.jpg"}, "image file missing"),
        ({"file_name": "x" * 300 + "/x.jpg"}, "image file missing"),
        ({"id": ...}, "image id is neither a number nor text"),
        ({"id": True}, "image id is neither a number nor text"),
        ({"width": 0}, "width or height is not a sane whole number"),
        ({"width": -64}, "width or height is not a sane whole number"),
        ({"height": 48.5}, "width or height is not a sane whole number"),
        ({"height": 10**12}, "width or height is not a sane whole number"),
        ({"width": 214747, "height": 10000}, "width or height is not a sane whole number"),
        ({"width": 2**20 + 1, "height": 1}, "width or height is not a sane whole number"),
        ({"file_name": "broken.jpg", "width": ...}, "image cannot be opened"),
    ],
)
def test_images_left_out(tmp_path: Path, changes: dict, kind: str) -> None:
    files = {"a.jpg": picture(), "sub/b.jpg": picture(), "broken.jpg": b"not an image"}
    (tmp_path / "secret.jpg").write_bytes(picture())
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "train" / "linked").symlink_to(tmp_path)
    (tmp_path / "train" / "loop.jpg").symlink_to("loop.jpg")
    images = [image(id=7), image(**changes)]
    records, problems = read(tmp_path, images=images, annotations=[], files=files)
    assert [r["image_id"] for r in records] == [7]
    assert problems == {f"{kind} (image left out)": 1}


@pytest.mark.parametrize(
    ("changes", "found", "kind"),
    [
        ({"file_name": "sub\\b.jpg"}, "sub/b.jpg", "has backslashes (taken for slashes)"),
        ({"file_name": ".\\a.jpg"}, "./a.jpg", "has backslashes (taken for slashes)"),
        ({"file_name": "train\\a.jpg"}, "a.jpg", "has the image folder's own name (left off)"),
        (
            {"file_name": "train/sub/b.jpg"},
            "sub/b.jpg",
            "has the image folder's own name (left off)",
        ),
        ({"file_name": "c.jpg"}, "c.JPG", "'s extension is in another case (file's taken)"),
        ({"file_name": "sub/D.PNG"}, "sub/D.png", "'s extension is in another case (file's taken)"),
        ({"file_name": "train/c.Jpg"}, "c.JPG", "has the image folder's own name (left off)"),
    ],
)
def test_file_names_of_other_machines(tmp_path: Path, changes: dict, found: str, kind: str) -> None:
    files = {name: picture() for name in ("a.jpg", "c.JPG", "sub/b.jpg", "sub/D.png")}
    index = load(tmp_path, images=[image(**changes)], files=files)
    assert (tmp_path / "train" / found).samefile(index.image_path(0))
    assert index.file_name(0) == index.record(0)["file_name"] == found
    name = changes["file_name"]
    space = "" if kind.startswith("'") else " "
    assert index.problems.lines() == [f"file_name{space}{kind}: 1 ({name})"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("..\\secret.jpg", "file_name leaves the image folder"),
        ("sub\\..\\..\\secret.jpg", "file_name leaves the image folder"),
        ("C:\\x\\a.jpg", "file_name leaves the image folder"),
        ("C:/x/a.jpg", "file_name leaves the image folder"),
        ("\\\\server\\a.jpg", "file_name leaves the image folder"),
        ("train/../../secret.jpg", "file_name leaves the image folder"),
        ("linked\\secret.jpg", "link leaves the image folder"),
        ("link.JPG", "link leaves the image folder"),
        ("train/link.jpg", "link leaves the image folder"),
        ("two.jpg", "file_name fits several files"),
        ("A.jpg", "image file missing"),
        ("train/x.jpg", "image file missing"),
        ("file:///a.jpg", "image file missing"),
    ],
)
def test_file_names_that_nothing_mends(tmp_path: Path, name: str, reason: str) -> None:
    files = {"a.jpg": picture(), "two.JPG": picture(), "two.Jpg": picture(), "sub/b.jpg": b""}
    (tmp_path / "secret.jpg").write_bytes(picture())
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "train" / "linked").symlink_to(tmp_path)
    entries = [image(), image(id=2, file_name=name)]
    index = load(tmp_path, images=entries, annotations=[], files=files)
    assert index.problems.lines() == [f"{reason} (image left out): 1 ({name})"]


@pytest.mark.parametrize("file", ["train2017/7.jpg", "7.jpg"])
def test_lvis_has_urls_instead_of_file_names(tmp_path: Path, file: str) -> None:
    url = "http://images.example.org/train2017/7.jpg"
    odd = [image(id=n, file_name=..., coco_url=u) for n, u in enumerate(["x/8.jpg", "../a", 5], 2)]
    lvis = image(file_name=..., coco_url=url, neg_category_ids=[3], not_exhaustive_category_ids=[])
    index = load(
        tmp_path,
        images=[lvis, *odd],
        annotations=[annotation(iscrowd=...)],
        files={file: picture()},
    )
    problems = Problems()
    assert index.record(0, problems)["file_name"] == file and len(index) == 1
    assert index.problems.counts == {
        "no file_name (coco_url's taken)": 1,
        "no file_name, and no file as its coco_url has it (image left out)": 2,
        "no file_name (image left out)": 1,
    }
    assert problems.counts == {"iscrowd missing (0 taken)": 1}


def test_file_names_that_occur_twice_are_kept_and_counted(tmp_path: Path) -> None:
    images = [image(), image(id=2), image(id=3, file_name="b.jpg")]
    records, problems = read(
        tmp_path,
        images=images,
        annotations=[annotation(), annotation(id=2, image_id=2)],
        files={"a.jpg": picture(), "b.jpg": picture()},
    )
    assert [len(record["annotations"]) for record in records] == [1, 1, 0]
    assert problems == {"file_name occurs twice (both images kept)": 1}


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


def test_links_and_folders_inside_are_fine(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "train").symlink_to(tmp_path / "elsewhere")  # the user's own choice of a folder
    (tmp_path / "train" / "b.jpg").symlink_to("deep/a.jpg")
    names = ["deep/a.jpg", "b.jpg"]
    images = [image(id=n, file_name=name) for n, name in enumerate(names)]
    records, problems = read(
        tmp_path, images=images, annotations=[], files={"deep/a.jpg": picture()}
    )
    assert [r["file_name"] for r in records] == names and not problems


def test_missing_size_is_the_pictures_as_it_is_shown(tmp_path: Path) -> None:
    from PIL import Image

    turned = Image.Exif()
    turned[0x0112] = 6
    records, problems = read(
        tmp_path,
        images=[image(width=...), image(id=2, file_name="b.jpg", height=None)],
        files={"a.jpg": picture(), "b.jpg": picture(exif=turned.tobytes())},
    )
    assert [(r["width"], r["height"]) for r in records] == [(64, 48), (48, 64)]
    assert problems == {"width or height missing (picture's taken)": 2}


def test_images_without_annotations_are_kept(tmp_path: Path) -> None:
    records, problems = read(tmp_path, annotations=[])
    assert records == [
        {"image_id": 1, "file_name": "a.jpg", "width": 64, "height": 48, "annotations": []}
    ]
    assert not problems


def whole(file: Path, folder: Path) -> tuple[list[list[dict]], Problems]:
    """What a file says of each of its images, by reading it in one go."""
    content = json.loads(file.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    problems = Problems()
    found, slots = lists.find_images(content["images"], folder, problems, exact=True)
    categories = [as_id(category["id"]) for category in content["categories"]]
    dealt: list[list[dict]] = [[] for _ in found.names]
    nameless = []
    used = set()
    for position, raw in enumerate(content["annotations"]):
        if not isinstance(raw, dict):
            problems.add("annotation is not an object (left out)", f"annotations[{position}]")
            continue
        id_ = as_id(raw.get("id"))
        shown = f"annotations[{position}]" if id_ is None else f"annotation {id_}"
        image_id = id_key(raw.get("image_id"), exact=True)
        shown += "" if image_id is None else f" of image {image_id}"
        slot = slots.get(image_id)
        category = as_id(raw.get("category_id"))
        if slot is None:
            problems.add("annotation of an unknown image (left out)", shown)
        elif category not in categories:
            problems.add("annotation of an unknown category (left out)", shown)
        elif slot < 0:
            problems.add("annotation of an image that is left out (left out)", shown)
        else:
            if id_ is None:
                problems.add("annotation id missing or not a whole number (numbered anew)", shown)
            elif id_ in used:
                problems.add("annotation id occurs twice (numbered anew)", shown)
                id_ = None
            dealt[slot].append(raw | {"id": id_, "category_id": category})
            used.add(id_)
            if id_ is None:
                nameless.append(dealt[slot][-1])
    for new, raw in enumerate(nameless, max(used - {None}, default=0) + 1):
        raw["id"] = new
    tops = [c for c in content["categories"] if c.get("supercategory") == "none"]
    used = {raw["category_id"] for raws in dealt for raw in raws}
    if len(tops) == 1 < len(content["categories"]) and as_id(tops[0]["id"]) not in used:
        kind = "category without annotations that stands for the others' group (kept, as a class)"
        problems.add(kind, f"{tops[0]['name']} (id {tops[0]['id']})")  # as Roboflow writes it
    return dealt, problems


def assert_read_in_pieces(file: Path, folder: Path) -> None:
    """Whatever the size of the pieces: the same as in one go."""
    dealt, problems = whole(file, folder)
    for piece in (1 if file.stat().st_size < 10_000 else 1000, 100, 2**20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jsontext.scan, "__defaults__", (piece,))
            patch.setattr(jsontext.Array.values, "__defaults__", (piece, False))
            index = pickle.loads(pickle.dumps(coco.load(file, folder)))  # noqa: S301
        assert index.problems.lines() == problems.lines()
        found, expected = Problems(), Problems()
        for i, raws in enumerate(dealt):
            record = index.record(i, found)
            checked = []
            for raw in raws:
                what = f"annotation {raw['id']} of {index.file_name(i)}"
                count = partial(expected.add, example=what)
                checked.append(check_annotation(raw, record["height"], record["width"], count))
            assert record["annotations"] == [a for a in checked if a is not None]
            assert record["image_id"] == index.image_id(i)
            assert index.sizes()[i].tolist() == [record["width"], record["height"]]
        assert found.lines() == expected.lines()


@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=pytest.mark.release) if n > 11 else n for n in range(40)]
)
def test_a_file_in_pieces_is_the_file(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    ids = [0, 1, 2, "3", 4.0, -5, None, 2**63, 2**70, "x", True]
    shapes = [SQUARE, [], [[1, 2, 3]], SQUARE * 2, [[9, 9, 99, 9, 9, 99]], None, [SQUARE], 7]
    extras = [{}, {"attributes": {"occluded": False}}, {"parts": [{"a": [1]}, {"b": "}, {"}]}]
    annotations = [
        annotation(
            id=rng.choice([n, n, n, *ids]),
            image_id=rng.choice([1, 2, 3, 4, rng.choice(ids)]),
            category_id=rng.choice([3, 7, 7.0, rng.choice(ids)]),
            segmentation=rng.choice([SQUARE, SQUARE, rng.choice(shapes)]),
            area=rng.choice([400, NAN, ...]),
            bbox=rng.choice([[1.5, 2, 3, 4], [1, 2], ["1", "2", "3", "4"], [0, 0, 1e16, 1]]),
            **rng.choice(extras),
        )
        for n in range(30)
    ]
    annotations = [a if rng.random() < 0.95 else rng.choice([7, [a], None]) for a in annotations]
    annotations.append(annotation(id=50, image_id=6))  # that some can be used, whatever came out
    images = [image(id=n, file_name=rng.choice("aab") + ".jpg", note="}],{") for n in range(6)]
    images.append(image(id=6))
    write(tmp_path, images=images, annotations=annotations)
    file = tmp_path / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    keys = rng.sample(sorted(content), 3)
    layout = rng.choice([{}, {"separators": (",", ":")}, {"indent": 4}])
    bom = rng.choice([b"", b"\xef\xbb\xbf"])
    text = json.dumps({"info": {"a": [{}]}, **{key: content[key] for key in keys}}, **layout)
    file.write_bytes(bom + text.encode())
    assert_read_in_pieces(file, tmp_path / "train")


@pytest.mark.parametrize(
    "name",
    [
        "fruits_nuts",
        "balloon",
        pytest.param("coco_mini", marks=pytest.mark.release),
        pytest.param("microscopy_flakes", marks=pytest.mark.release),
    ],
)
def test_real_files_in_pieces_are_the_files(shared_data: Path, name: str) -> None:
    for split in layouts.find_splits(shared_data / name).values():
        assert_read_in_pieces(split.annotation_file, split.image_folder)


def test_odd_files_in_pieces_are_the_files(shared_data: Path, tmp_path: Path) -> None:
    read_by_both = 0
    for file in sorted((shared_data / "odd").rglob("*.json")):
        content = json.loads(file.read_text())
        if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
            continue
        folder = tmp_path / str(read_by_both)
        for entry in filter(lambda entry: isinstance(entry, dict), content["images"]):
            path = folder / str(entry.get("file_name"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(entry.get("width") or 64, entry.get("height") or 48))
        try:
            coco.load(file, folder)
        except InputError:
            continue
        assert_read_in_pieces(file, folder)
        read_by_both += 1
    assert read_by_both > 5


def test_a_file_cut_short_behind_the_index_is_refused(tmp_path: Path) -> None:
    index = load(tmp_path)
    file = tmp_path / "annotations" / "instances_train.json"
    os.truncate(file, 10)
    with pytest.raises(InputError, match=r"instances_train\.json: it changed") as error:
        index.record(0)
    assert "\n" not in str(error.value)


def test_an_index_is_small(tmp_path: Path) -> None:
    """It goes to every worker: places in the file, not what is there."""
    long = [[10.25, 8.5, 30.125, 8.5, 30.125, 28.75] * 20]
    annotations = [annotation(id=n, segmentation=long) for n in range(2000)]
    index = load(tmp_path, annotations=annotations)
    file = tmp_path / "annotations" / "instances_train.json"
    assert len(pickle.dumps(index)) < file.stat().st_size / 20


def test_annotation_bytes_are_about_the_records(shared_data: Path) -> None:
    for name in ("coco_mini", "fruits_nuts", "balloon", "microscopy_flakes"):
        for split in layouts.find_splits(shared_data / name).values():
            index = coco.load(split.annotation_file, split.image_folder)
            expected = sum(index.annotation_bytes(i) for i in range(len(index)))
            real = sum(len(json.dumps(index.record(i))) for i in range(len(index)))
            assert 0.6 * real < expected < 1.5 * real


def test_labels_are_contiguous_by_id_and_keep_the_unused(tmp_path: Path) -> None:
    index = load(tmp_path, categories=[{"id": i, "name": f"c{i}"} for i in (90, 3, 0, 17)])
    assert [c.id for c in index.categories] == [0, 3, 17, 90]
    assert coco.label_of(reversed(index.categories)) == {0: 0, 3: 1, 17: 2, 90: 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("", "not a JSON file"),
        ("\x00\xff", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ("[]", "not a COCO file"),
        ('{"images": [], "categories": []}', "no 'annotations'"),
        ('{"images": {}, "annotations": [], "categories": []}', "'images' is not a list"),
        ('{"images": [], "annotations": [], "categories": []}', "'categories' is empty"),
    ],
)
def test_files_that_are_not_coco(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path)
    file = tmp_path / "annotations" / "instances_train.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        coco.load(file, tmp_path / "train")
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_byte_order_mark_is_fine(tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / "annotations" / "instances_train.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(coco.load(file, tmp_path / "train")) == 1


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "'b' has id 1, which 'a' has"),
        ([{"name": "a"}], "no 'id', a number or text"),
        ([{"id": 1}], "no 'name'"),
        ([{"id": 1, "name": "\ud800"}], "no 'name'"),
        (["a"], "not an object"),
    ],
)
def test_odd_categories_are_refused(tmp_path: Path, categories: list, message: str) -> None:
    assert message in refused(tmp_path, categories=categories)


def test_nothing_left_to_read_is_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, images=[image(file_name="x.jpg"), image(id=2, file_name="y.jpg")])
    assert "image file missing (image left out): 2 (x.jpg, y.jpg)" in message
    assert "it lists none" in refused(tmp_path, images=[])
    with pytest.raises(InputError, match=r"nowhere: no such folder, but .*train\.json"):
        coco.load(tmp_path / "annotations" / "instances_train.json", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"gone\.json: cannot be read: No such file"):
        coco.load(tmp_path / "gone.json", tmp_path)


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


def test_garbage_is_collected_again_once_a_file_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / "annotations" / "instances_train.json"
    assert gc.isenabled()
    coco.load(file, tmp_path / "train")
    assert gc.isenabled()
    file.write_text("{")
    with pytest.raises(InputError):
        coco.load(file, tmp_path / "train")
    assert gc.isenabled()
    gc.disable()  # as it was
    try:
        with pytest.raises(InputError):
            coco.load(file, tmp_path / "train")
        assert not gc.isenabled()
    finally:
        gc.enable()


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

        monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(InputError, match="annotations: cannot be read: Permission denied"):
        layouts.find_splits(tmp_path)


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


def test_problems_count_all_and_name_three() -> None:
    first, second = Problems(), Problems()
    for name in ("a", "b\n\x1b[31m"):
        first.add("odd", name)
    for name in ("c" * 500, "d"):
        second.add("odd", name)
    second.add("other", "e")
    first.update(second)
    assert first.lines() == [f"odd: 4 (a, b??[31m, {'c' * 100}, ...)", "other: 1 (e)"]


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
