"""Files that are read in pieces: the same as in one go, and the index is small."""

from __future__ import annotations

import gc
import json
import os
import pickle
import random
from functools import partial
from pathlib import Path

import pytest
from coco_folder import SQUARE, annotation, image, picture, write
from coco_read import NAN, load

from autotimm.coco import index as coco
from autotimm.coco import jsontext, layouts, lists
from autotimm.coco.categories import CategoryIds
from autotimm.coco.checks import Problems, as_id
from autotimm.coco.ids import id_key
from autotimm.coco.truths import checked_annotations
from autotimm.structures import InputError


def whole(file: Path, folder: Path) -> tuple[list[list[dict]], Problems]:
    """What a file says of each of its images, by reading it in one go."""
    content = json.loads(file.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    problems = Problems()
    ids = CategoryIds({}, {})  # none of these files has LVIS' lists
    found, slots = lists.find_images(content["images"], folder, problems, ids, exact=True)
    categories = [as_id(category["id"]) for category in content["categories"]]
    by_image: list[list[dict]] = [[] for _ in found.names]
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
            by_image[slot].append(raw | {"id": id_, "category_id": category})
            used.add(id_)
            if id_ is None:
                nameless.append(by_image[slot][-1])
    for new, raw in enumerate(nameless, max(used - {None}, default=0) + 1):
        raw["id"] = new
    for category in content["categories"]:
        if str(category["name"]).strip("_").lower() == "background":
            kind = "category is called background (kept, as a class)"
            problems.add(kind, f"id {category['id']}")
    tops = [c for c in content["categories"] if c.get("supercategory") == "none"]
    used = {raw["category_id"] for raws in by_image for raw in raws}
    if len(tops) == 1 < len(content["categories"]) and as_id(tops[0]["id"]) not in used:
        kind = "category without annotations for the others' group, as Roboflow's (kept; harmless)"
        problems.add(kind, f"{tops[0]['name']} (id {tops[0]['id']})")  # as Roboflow writes it
    return by_image, problems


def counted(problems: Problems, name: str, raw: dict, kind: str) -> None:
    problems.add(kind, f"annotation {raw['id']} of {name}")


def assert_read_in_pieces(file: Path, folder: Path) -> None:
    """Whatever the size of the pieces: the same as in one go."""
    by_image, problems = whole(file, folder)
    for piece in (1 if file.stat().st_size < 10_000 else 1000, 100, 2**20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jsontext.scan, "__defaults__", (piece,))
            patch.setattr(jsontext.Array.values, "__defaults__", (piece, False))
            index = pickle.loads(pickle.dumps(coco.load(file, folder)))  # noqa: S301
        assert index.problems.lines() == problems.lines()
        found, expected = Problems(), Problems()
        for i, raws in enumerate(by_image):
            record = index.record(i, found)

            count = partial(counted, expected, index.file_name(i))
            checked, _ = checked_annotations(raws, record["height"], record["width"], count)
            assert record["annotations"] == checked
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
