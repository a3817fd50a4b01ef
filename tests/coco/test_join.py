"""Several annotation files of one split: one set of images, ids and classes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from coco_folder import SQUARE, annotation, image, picture

from autotimm.coco.checks import Problems
from autotimm.coco.join import load_split
from autotimm.coco.layouts import Split
from autotimm.structures import InputError, Record

OTHER = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]]


def put(root: Path, name: str, images: list[Any], annotations: list[Any], classes: dict) -> Path:
    """An annotation file, and the images that it names in a folder of its name."""
    categories = [{"id": id_, "name": text} for id_, text in classes.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / name).mkdir(exist_ok=True)
    for entry in images:
        (root / name / entry["file_name"]).write_bytes(picture(entry["width"], entry["height"]))
    (root / f"{name}.json").write_text(json.dumps(content))
    return root / f"{name}.json"


def joined(*sources: tuple[Path, Path]) -> tuple[list[Record], dict[int, str], dict[str, int]]:
    """The records, the classes by id, and what is counted."""
    index = pickle.loads(pickle.dumps(load_split(Split("train", *sources[0], sources[1:]))))  # noqa: S301
    problems = Problems()
    problems.update(index.problems)
    records = [index.record(i, problems) for i in range(len(index))]
    assert [index.record(i) for i in range(len(index))] == records, "a second look changes nothing"
    for i, record in enumerate(records):
        assert record["image_id"] == index.image_id(i)
        assert record["file_name"] == index.file_name(i)
        assert (record["width"], record["height"]) == index.size(i) == (*index.sizes()[i],)
        assert index.image_path(i).is_file() and index.annotation_bytes(i) > 0
    ids = [a["id"] for record in records for a in record["annotations"]]
    assert len(set(ids)) == len(ids)
    assert len({record["image_id"] for record in records}) == len(records)
    return records, {c.id: c.name for c in index.categories}, problems.counts


def test_what_does_not_clash_stays_as_it_is(tmp_path: Path) -> None:
    classes = {1: "cat", 2: "dog"}
    a = put(tmp_path, "a", [image()], [annotation(category_id=1)], classes)
    images = [image(id=8, file_name="b.jpg")]
    b = put(tmp_path, "b", images, [annotation(id=9, image_id=8, category_id=2)], classes)
    records, found, counts = joined((a, tmp_path / "a"), (b, tmp_path / "b"))
    assert [(r["image_id"], r["file_name"]) for r in records] == [(1, "a.jpg"), (8, "b.jpg")]
    assert [[(x["id"], x["category_id"]) for x in r["annotations"]] for r in records] == [
        [(1, 1)],
        [(9, 2)],
    ]
    assert found == classes and not counts


def test_ids_that_clash_are_numbered_anew(tmp_path: Path) -> None:
    sources = []
    for name in "abc":
        images = [image(id=n, file_name=f"{name}{n}.jpg") for n in (1, 2)]
        annotations = [annotation(id=n, image_id=n, category_id=1) for n in (1, 2)]
        file = put(tmp_path, name, images, annotations, {1: "cat"})
        sources.append((file, tmp_path / name))
    records, found, counts = joined(*sources)
    assert [(r["image_id"], r["file_name"]) for r in records] == [
        (id_, f"{name}.jpg") for id_, name in enumerate(["a1", "a2", "b1", "b2", "c1", "c2"], 1)
    ]
    assert [a["id"] for r in records for a in r["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert found == {1: "cat"}
    assert counts == {
        "annotation ids clash between annotation files (shifted)": 2,
        "image id is in several annotation files (numbered anew)": 4,
    }


def test_images_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    a = put(tmp_path, "a", [image()], [], {1: "cat"})
    b = put(tmp_path, "b", [image()], [], {1: "cat"})
    assert len(joined((a, tmp_path / "a"), (b, tmp_path / "b"))[0]) == 2


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    a = put(tmp_path, "a", [image()], [annotation(category_id=2)], {1: "cat", 2: "dog", 7: "cow"})
    images = [image(id=2, file_name="b.jpg")]
    annotations = [annotation(id=10 + n, image_id=2, category_id=n) for n in (1, 2, 3, 5)]
    b = put(tmp_path, "b", images, annotations, {1: "dog", 2: "cat", 3: "cow", 5: "owl"})
    images = [image(id=3, file_name="c.jpg")]
    annotations = [annotation(id=20 + n, image_id=3, category_id=n) for n in (1, 2)]
    c = put(tmp_path, "c", images, annotations, {1: "emu", 2: "dog"})
    records, found, counts = joined(*((f, tmp_path / f.stem) for f in (a, b, c)))
    assert found == {1: "cat", 2: "dog", 5: "owl", 7: "cow", 8: "emu"}
    named = [[found[x["category_id"]] for x in r["annotations"]] for r in records]
    assert named == [["dog"], ["dog", "cat", "cow", "owl"], ["emu", "dog"]]
    assert counts == {
        "category has another id in another annotation file (matched by name)": 3,
        "category id is of another class in another annotation file (numbered anew)": 1,
    }


def test_classes_that_share_a_name_stay_apart(tmp_path: Path) -> None:
    classes = {1: "cat", 2: "cat"}
    a = put(tmp_path, "a", [image()], [], classes)
    images = [image(id=2, file_name="b.jpg")]
    annotations = [annotation(id=n, image_id=2, category_id=n) for n in (1, 2)]
    b = put(tmp_path, "b", images, annotations, classes)
    records, found, counts = joined((a, tmp_path / "a"), (b, tmp_path / "b"))
    assert found == classes and not counts
    assert [a["category_id"] for a in records[1]["annotations"]] == [1, 2]


def test_one_image_in_two_files_has_the_annotations_of_both(tmp_path: Path) -> None:
    a = put(tmp_path, "a", [image()], [annotation(category_id=1)], {1: "cat"})
    annotations = [
        annotation(id=1, image_id=5, category_id=1, segmentation=OTHER, bbox=[1, 1, 8, 8]),
        annotation(id=2, image_id=5, category_id=2),  # the same instance once more
    ]
    b = put(tmp_path, "b", [image(id=5)], annotations, {1: "dog", 2: "cat"})
    odd = [image(id=6, width=48, height=64)]
    c = put(tmp_path, "c", odd, [annotation(id=9, image_id=6, category_id=1)], {1: "cat"})
    folder = tmp_path / "a"
    records, found, counts = joined((a, folder), (b, folder), (c, folder))
    assert [r["image_id"] for r in records] == [1]
    assert [(x["id"], found[x["category_id"]]) for x in records[0]["annotations"]] == [
        (1, "cat"),
        (2, "dog"),
    ]
    assert records[0]["annotations"][0]["polygons"] == SQUARE
    assert counts == {
        "category has another id in another annotation file (matched by name)": 1,
        "category id is of another class in another annotation file (numbered anew)": 1,
        "annotation ids clash between annotation files (shifted)": 1,
        "image is in several annotation files (annotations joined)": 1,
        "image has another size in another annotation file (left out)": 1,
        "instance is in several annotation files (taken once)": 1,
    }


def test_ids_near_the_end_of_64_bits(tmp_path: Path) -> None:
    last = 2**63 - 1
    sources = []
    for name in "ab":
        images = [image(id=last, file_name=f"{name}.jpg")]
        annotations = [annotation(id=last, image_id=last, category_id=1)]
        file = put(tmp_path, name, images, annotations, {1: "cat"})
        sources.append((file, tmp_path / name))
    records, _, _ = joined(*sources)
    assert [r["image_id"] for r in records] == [last, 1]
    wide = [annotation(id=id_, image_id=last, category_id=1) for id_ in (-(2**63), last)]
    put(tmp_path, "a", [image(id=last)], wide, {1: "cat"})
    with pytest.raises(InputError, match=r"b\.json: its annotation ids clash .* number them from"):
        joined(*sources)
