"""Several annotation files of one split: one set of images, ids and classes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from coco_folder import SQUARE, annotation, image, picture

from autotimm.coco.checks import Problems
from autotimm.coco.index import Category
from autotimm.coco.join import load_split
from autotimm.coco.layouts import Split
from autotimm.evaluation.ground_truth import of_records
from autotimm.evaluation.truth import Truth
from autotimm.sharding.cli import main
from autotimm.streaming.store import open_source
from autotimm.structures import InputError, Record, is_trained_on

OTHER = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]]


def put(
    root: Path, name: str, images: list[Any], annotations: list[Any], classes: dict | list
) -> Path:
    """An annotation file, and the images that it names in a folder of its name."""
    categories = classes
    if isinstance(classes, dict):
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
        trained = {a["category_id"] for a in record["annotations"] if is_trained_on(a)}
        assert index.trained_ids(i) == trained
        assert index.trained_ids(i, {*trained, 99}) == set()
    ids = [a["id"] for r in records for a in (*r["annotations"], *r.get("unmasked", ()))]
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


ABOUT = "category has about the name of another (kept, as a class)"
KNOWN = [Category(1, "cat"), Category(2, "dog"), Category(4, "bat"), Category(5, "bat")]


@pytest.mark.parametrize(
    ("classes", "become", "counted"),
    [
        ({1: "cat", 2: "dog"}, {1: "cat", 2: "dog"}, 0),
        ({2: "dog", 9: "owl"}, {2: "dog", 9: "owl"}, 0),
        ({4: "bat", 5: "bat"}, {4: "bat", 5: "bat"}, 0),
        ({11: "cat", 12: "dog"}, {1: "cat", 2: "dog"}, 2),
        ({0: "cat", 1: "dog"}, {1: "cat", 2: "dog"}, 2),
        ({2: "cat", 1: "dog", 3: "owl"}, {1: "cat", 2: "dog", 3: "owl"}, 2),
        ({5: "bat", 6: "bat"}, {4: "bat", 5: "bat"}, 1),
    ],
)
def test_a_split_takes_the_ids_that_its_classes_have_in_another(
    classes: dict[int, str], become: dict[int, str], counted: int, tmp_path: Path
) -> None:
    annotations = [annotation(id=n, category_id=id_) for n, id_ in enumerate(classes, 1)]
    file = put(tmp_path, "a", [image()], annotations, classes)
    index = load_split(Split("val", file, tmp_path / "a"), known=KNOWN)
    assert {c.id: c.name for c in index.categories} == become
    ids = [one["category_id"] for one in index.record(0)["annotations"]]
    assert [become[id_] for id_ in ids] == [*classes.values()] and len({*ids}) == len(ids)
    kind = "category has another id in another annotation file (matched by name)"
    same = {ABOUT: 1} if len({*classes.values()}) < len(classes) else {}
    assert index.problems.counts == ({kind: counted} if counted else {}) | same


def test_the_numbers_of_text_ids_are_those_of_the_other_split(tmp_path: Path) -> None:
    known = [Category(1, "cat", given_id="c"), Category(2, "dog", given_id="d")]
    classes = [{"id": "d", "name": "dog"}, {"id": "o", "name": "owl"}, {"id": "c", "name": "cat"}]
    annotations = [annotation(id=n, category_id=id_) for n, id_ in enumerate("doc", 1)]
    file = put(tmp_path, "a", [image()], annotations, classes)
    index = load_split(Split("val", file, tmp_path / "a"), known=known)
    assert [(c.id, c.name, c.given_id) for c in index.categories] == [
        (1, "cat", "c"),
        (2, "dog", "d"),
        (4, "owl", "o"),
    ]
    assert [one["category_id"] for one in index.record(0)["annotations"]] == [2, 4, 1]
    assert index.problems.counts == {"category id is not a whole number (numbered anew)": 3}


def test_an_id_of_two_classes_of_different_names_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path, "a", [image()], [], {1: "dog", 2: "owl"})
    with pytest.raises(InputError, match=r"a\.json: category 2 is 'owl', but 'dog' in another"):
        load_split(Split("val", file, tmp_path / "a"), known=KNOWN)


def test_classes_that_share_a_name_stay_apart(tmp_path: Path) -> None:
    classes = {1: "cat", 2: "cat"}
    a = put(tmp_path, "a", [image()], [], classes)
    images = [image(id=2, file_name="b.jpg")]
    annotations = [annotation(id=n, image_id=2, category_id=n) for n in (1, 2)]
    b = put(tmp_path, "b", images, annotations, classes)
    records, found, counts = joined((a, tmp_path / "a"), (b, tmp_path / "b"))
    assert found == classes and counts == {ABOUT: 2}
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


def test_truths_without_a_mask_are_of_the_whole(tmp_path: Path) -> None:
    """What evaluation counts besides has the ids of the whole, and is there from every file."""
    alone = {"segmentation": ...}
    a = put(
        tmp_path,
        "a",
        [image(), image(id=2, file_name="b.jpg")],
        [
            annotation(id=1, category_id=1),
            annotation(id=2, category_id=1, bbox=[1, 2, 3, 4], **alone),
            annotation(id=3, image_id=2, category_id=1, bbox=[5, 5, 5, 5], **alone),
        ],
        {1: "cat"},
    )
    annotations = [
        annotation(id=1, image_id=5, category_id=1, bbox=[2, 2, 9, 9], **alone),
        annotation(id=2, image_id=5, category_id=2, bbox=[1, 2, 3, 4], **alone),  # once more
        annotation(id=3, image_id=5, category_id=2, **alone),  # the first, without its mask
        annotation(id=4, image_id=6, category_id=1, bbox=[7, 7, 7, 7], **alone),
    ]
    images = [image(id=5), image(id=6, file_name="c.jpg")]
    b = put(tmp_path, "b", images, annotations, {1: "dog", 2: "cat"})
    (tmp_path / "a" / "c.jpg").write_bytes(picture())
    records, found, counts = joined((a, tmp_path / "a"), (b, tmp_path / "a"))
    without = [
        [(x["id"], found[x["category_id"]], x["bbox"]) for x in r["unmasked"]] for r in records
    ]
    assert without == [
        [(2, "cat", [1, 2, 3, 4]), (4, "dog", [2, 2, 9, 9])],
        [(3, "cat", [5, 5, 5, 5])],
        [(7, "dog", [7, 7, 7, 7])],
    ]
    assert [len(r["annotations"]) for r in records] == [1, 0, 0]
    assert counts["instance is in several annotation files (taken once)"] == 2
    records, _, _ = joined((b, tmp_path / "a"), (a, tmp_path / "a"))
    assert [len(r["unmasked"]) for r in records] == [2, 1, 1], "in the other order alike"


def test_lists_of_lvis_are_joined(tmp_path: Path) -> None:
    def lists(no: list[int], some: list[int]) -> dict[str, list[int]]:
        return {"neg_category_ids": no, "not_exhaustive_category_ids": some}

    classes = {1: "cat", 2: "dog", 3: "cow", 4: "owl"}
    mine = [image(**lists([2, 3], [1])), image(id=2, file_name="b.jpg")]
    a = put(tmp_path, "a", mine, [annotation(category_id=1)], classes)
    other = {1: "owl", 2: "emu", 3: "dog", 5: "cat", 6: "hen"}
    images = [
        image(id=5, **lists([5, 2, 1, 9], [3])),  # 9 is no category of this file
        image(id=6, file_name="b.jpg"),
        image(id=7, file_name="c.jpg", **lists([1, 6], [2])),
    ]
    annotations = [
        annotation(id=9, image_id=5, category_id=3),
        annotation(id=10, image_id=5, category_id=6, segmentation=...),
    ]
    b = put(tmp_path, "b", images, annotations, other)
    (tmp_path / "a" / "c.jpg").write_bytes(picture())
    folder = tmp_path / "a"
    records, found, counts = joined((a, folder), (b, folder))

    def named(record: Record) -> list[list[str]]:
        no, some = record["neg_category_ids"], record["not_exhaustive_category_ids"]
        return [sorted(found[id_] for id_ in no), sorted(found[id_] for id_ in some)]

    assert named(records[0]) == [["cow", "emu", "owl"], ["cat", "dog"]]
    assert "neg_category_ids" not in records[1]
    assert named(records[2]) == [["hen", "owl"], ["emu"]]
    kind = "neg_category_ids has an id that no category of its file has (left out)"
    assert counts[kind] == 1


def test_categories_keep_what_their_file_says_of_them(tmp_path: Path) -> None:
    mine = [{"id": "c-1", "name": "cat", "frequency": "r"}, {"id": 7, "name": "cow"}]
    a = put(tmp_path, "a", [image()], [annotation(category_id="c-1")], mine)
    other = [
        {"id": "c-1", "name": "dog", "frequency": "f"},  # the id of another class
        {"id": "c-2", "name": "emu", "supercategory": "bird"},
        {"id": 8, "name": "hen"},  # the number in place of c-1
    ]
    images = [image(id=2, file_name="b.jpg")]
    b = put(tmp_path, "b", images, [annotation(id=2, image_id=2, category_id="c-1")], other)
    split = Split("train", a, tmp_path / "a", ((b, tmp_path / "b"),))
    index = load_split(split)
    found = {c.name: (c.given_id, c.frequency, c.supercategory) for c in index.categories}
    assert found == {
        "cat": ("c-1", "r", ""),
        "cow": (None, "", ""),
        "dog": (None, "f", ""),
        "emu": ("c-2", "", "bird"),
        "hen": (None, "", ""),
    }
    names = {c.id: c.name for c in index.categories}
    assert len(names) == 5
    assert [names[index.record(i)["annotations"][0]["category_id"]] for i in (0, 1)] == [
        "cat",
        "dog",
    ]
    counts = index.problems.counts
    kind = "category id is of another class in another annotation file (numbered anew)"
    assert counts[kind] == 2, "of 'dog' and 'hen', not of 'emu', whose id is its own"


def test_a_text_id_of_two_images_is_the_firsts(tmp_path: Path) -> None:
    sources = []
    for name, other in (("a", "img-x"), ("b", "img-y")):
        images = [
            image(id="img-1", file_name=f"{name}1.jpg"),
            image(id=other, file_name=f"{name}2.jpg"),
        ]
        annotations = [annotation(id=n, image_id=id_) for n, id_ in enumerate(("img-1", other), 1)]
        file = put(tmp_path, name, images, annotations, {3: "cat"})
        sources.append((file, tmp_path / name))
    numbers = [image(id=1, file_name="c1.jpg")]  # the number in place of img-1
    sources.append((put(tmp_path, "c", numbers, [], {3: "cat"}), tmp_path / "c"))
    records, _, counts = joined(*sources)
    assert [r.get("given_id") for r in records] == ["img-1", "img-x", None, "img-y", None]
    assert counts["image id is in several annotation files (numbered anew)"] == 2
    truth = of_records(records, [Category(3, "cat")])
    assert [image["file_name"] for image in truth.images] == [
        "a1.jpg", "a2.jpg", "b1.jpg", "b2.jpg", "c1.jpg",
    ]  # fmt: skip
    assert truth.numbers == {r["given_id"]: r["image_id"] for r in records if "given_id" in r}
    records[2]["given_id"] = "img-1"  # as shards of older versions have it
    with pytest.raises(
        InputError, match=r"^joined: two images have the id img-1, .* b1\.jpg: "
    ) as e:
        of_records(records, [Category(3, "cat")], "joined")
    assert "\n" not in str(e.value)


def test_joined_shards_are_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The check of shards, and evaluation, take joined records with all of the above."""
    alone = {"segmentation": ..., "bbox": [1, 2, 3, 4]}
    sources = []
    for name, classes in (("a", {1: "cat", 2: "dog"}), ("b", {4: "cat", 1: "dog"})):
        images = [image(id="img-1", file_name="x.jpg", neg_category_ids=[1])]
        images += [image(id=9, file_name=f"{name}.jpg")]
        ids = [*classes]
        annotations = [
            annotation(id=1, image_id="img-1", category_id=ids[0]),
            annotation(id=2, image_id=9, category_id=ids[1], **alone),
        ]
        sources.append((put(tmp_path, name, images, annotations, classes), tmp_path / name))
    given = [f for file, folder in sources for f in ("--annotations", file, "--images", folder)]
    out = tmp_path / "out"
    for arguments in ((*given, "--splits", "train,train", out), ("--verify", out)):
        with pytest.raises(SystemExit) as exit_:
            main([str(one) for one in arguments])
        assert exit_.value.code == 0, capsys.readouterr()
    truth = Truth(open_source(out, "train")).truth
    assert len(truth.images) == 4 and len(truth.annotations) == 4
    names = {c.id: c.name for c in truth.categories}
    assert sorted(names[one["category_id"]] for one in truth.annotations) == [
        "cat", "cat", "dog", "dog",
    ]  # fmt: skip
