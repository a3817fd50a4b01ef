"""Ids that are no whole numbers of 64 bits: numbered anew, the originals kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coco_folder import annotation, image, picture, write

from autotimm.coco import index as coco
from autotimm.coco.checks import as_id
from autotimm.coco.ids import FileNames, InexactIdError, free_ids, id_key
from autotimm.evaluation.truth_files import of_source
from autotimm.structures import InputError

UUIDS = ["7f9c-aa", "b1946ac9-2490-4c1d-a5cf-1e3d3a4c5b6e", "0x1F"]
LARGE = [2**127 - 1, 2**127 - 2, 2**63]


def load(root: Path, **content: Any) -> coco.CocoIndex:
    write(root, **content)
    return coco.load(root / "annotations/instances_train.json", root / "train")


@pytest.mark.parametrize("ids", [UUIDS, LARGE, [0.5, 1.5, 2.5]])
def test_ids_of_images_are_numbered_anew(tmp_path: Path, ids: list[Any]) -> None:
    index = load(
        tmp_path,
        images=[image(id=id_, file_name=f"{n}.jpg") for n, id_ in enumerate(ids)],
        annotations=[
            annotation(id=10 * n + k, image_id=id_, category_id=(3, 7)[k])
            for n, id_ in enumerate(ids)
            for k in range(2)
        ],
        files={f"{n}.jpg": picture() for n in range(3)},
    )
    records = [index.record(i) for i in range(3)]
    assert [r["image_id"] for r in records] == [1, 2, 3]
    given = [str(id_) if isinstance(id_, int) else id_ for id_ in ids]
    assert [r["given_id"] for r in records] == given
    assert [[a["id"] for a in r["annotations"]] for r in records] == [[0, 1], [10, 11], [20, 21]]
    assert index.problems.counts == {"image id is not a whole number (numbered anew)": 3}


def test_whole_numbers_stay_beside_them(tmp_path: Path) -> None:
    index = load(
        tmp_path,
        images=[image(id=id_, file_name=f"{n}.jpg") for n, id_ in enumerate(["x", 7, "5", 9.0])],
        annotations=[annotation(id=n, image_id=id_) for n, id_ in enumerate(["x ", "7", 5, "9.0"])],
        files={f"{n}.jpg": picture() for n in range(4)},
    )
    records = [index.record(i) for i in range(4)]
    assert [r["image_id"] for r in records] == [10, 7, 5, 9]
    assert [r.get("given_id") for r in records] == ["x", None, None, None]
    assert [r["annotations"][0]["id"] for r in records] == [0, 1, 2, 3]


def test_unsigned_numbers_of_64_bits_beside_small_ones(tmp_path: Path) -> None:
    """Hashes, of which no int64 holds the upper half."""
    ids = [5, 2**63 + 5, 2**64 - 1]
    index = load(
        tmp_path,
        images=[image(id=id_, file_name=f"{n}.jpg") for n, id_ in enumerate(ids)],
        categories=[{"id": 2**63, "name": "disc"}, {"id": 1, "name": "star"}],
        annotations=[
            annotation(id=n, image_id=id_, category_id=2**63) for n, id_ in enumerate(ids)
        ],
        files={f"{n}.jpg": picture() for n in range(3)},
    )
    assert [[a["id"] for a in index.record(i)["annotations"]] for i in range(3)] == [[0], [1], [2]]
    assert [index.record(i).get("given_id") for i in range(3)] == [None, *map(str, ids[1:])]


def test_ids_of_categories_are_numbered_anew(tmp_path: Path) -> None:
    index = load(
        tmp_path,
        categories=[
            {"id": "d", "name": "disc"},
            {"id": 4, "name": "star"},
            {"id": 2**90, "name": "x"},
        ],
        annotations=[
            annotation(id=n, category_id=id_) for n, id_ in enumerate(["d", 4, "4", 2**90, "disc"])
        ],
    )
    assert [(c.id, c.name, c.given_id) for c in index.categories] == [
        (4, "star", None),
        (5, "disc", "d"),
        (6, "x", str(2**90)),
    ]
    assert [a["category_id"] for a in index.record(0)["annotations"]] == [5, 4, 4, 6, 5]
    assert index.problems.counts == {
        "category id is not a whole number (numbered anew)": 2,
        "category_id is the category's name (its id taken)": 1,
    }


def test_a_category_may_be_named_where_its_name_is_one_only(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "disc"}, {"id": 2, "name": "disc"}, {"id": 3, "name": "star"}]
    given = ["star", "disc", "7"]
    index = load(
        tmp_path,
        categories=categories,
        annotations=[annotation(id=n, category_id=c) for n, c in enumerate(given)],
    )
    assert [a["category_id"] for a in index.record(0)["annotations"]] == [3]
    assert index.problems.counts["annotation of an unknown category (left out)"] == 2


def test_ids_that_are_none_are_left_out(tmp_path: Path) -> None:
    index = load(
        tmp_path,
        images=[image(), *(image(id=id_) for id_ in (None, True, [1], {"a": 1}, " "))],
    )
    assert len(index) == 1
    kind = "image id is neither a number nor text (image left out)"
    assert index.problems.counts == {kind: 5}


def test_keys() -> None:
    for value in (7, 7.0, "7", " 7 ", "7.0", "007"):
        assert id_key(value, exact=False) == 7
    assert id_key(2**64, exact=True) == id_key(str(2**64), exact=True) == str(2**64)
    assert id_key(float("nan"), exact=False) is None
    with pytest.raises(InexactIdError):  # what the quick parser makes of 2**64
        id_key(float(2**64), exact=False)
    assert as_id("7.5") is None
    assert free_ids({1, 5}, 2) == [6, 7]
    assert free_ids({2**63 - 1, 1}, 2) == [2, 3]
    assert free_ids(set(), 1) == [1]


def test_long_ids_beside_a_nan_are_the_same_without(tmp_path: Path) -> None:
    """A NaN makes another parser read what is near it: long numbers mean the same to both."""
    index = load(
        tmp_path,
        images=[image(), image(id=2, file_name="b.jpg")],
        annotations=[
            annotation(category_id=LARGE[0], score=float("nan")),
            annotation(id=2, image_id=2, category_id=LARGE[0]),
        ],
        categories=[{"id": LARGE[0], "name": "long", "score": float("nan")}],
        files={"a.jpg": picture(), "b.jpg": picture()},
    )
    assert [len(index.record(i)["annotations"]) for i in range(2)] == [1, 1]
    assert index.categories[0].given_id == str(LARGE[0])


@pytest.mark.parametrize(
    "written",
    [
        lambda name: name.rpartition("/")[2],
        lambda name: f"/set/{name}",
        lambda name: name.rpartition("/")[2].rpartition(".")[0],
    ],
)
def test_an_image_id_that_is_a_file_name_is_matched_by_it(
    tmp_path: Path, written: Callable[[str], str]
) -> None:
    """By a folder as by the file alone; a name that two images have is left out."""
    names = {5: "a/x1.jpg", 6: "b/x2.jpg", 7: "a/same.jpg", 8: "b/same.jpg"}
    images = [image(id=id_, file_name=name) for id_, name in names.items()]
    annotations = [
        annotation(id=n, image_id=written(name), area=100 + n)
        for n, name in enumerate((names[6], names[5], names[6], "same.jpg"))
    ]
    files = {name: picture() for name in names.values()}
    root = write(tmp_path, images, annotations, files=files)
    file = root / "annotations/instances_train.json"
    index = coco.load(file, root / "train")
    ids = [[one["id"] for one in index.record(i)["annotations"]] for i in range(4)]
    assert ids == [[1], [0, 2], [], []]
    expected = {
        "image_id is the image's file name (matched by it)": 3,
        "annotation of an unknown image (left out)": 1,
    }
    assert index.problems.counts == expected
    alone = of_source(file)
    assert [one["image_id"] for one in alone.annotations] == [5, 6, 6]
    assert alone.problems.counts == expected


def test_an_image_id_that_is_a_path_needs_its_folders() -> None:
    """Of two paths one ends as the other; what several images are called is none of them."""
    names = ["a/x1.jpg", "b/x2.jpg", "a/same.jpg", "b/same.jpg", r"c\d\y.jpg", "", "plain"]
    files = FileNames(lambda: ((name, place) for place, name in enumerate(names)))
    found = {
        **dict.fromkeys(["x1", "/set/a/x1.jpg", "set/a/x1"], 0),
        **dict.fromkeys(["b/x1.jpg", "a/x1.png", "d/x1", "same", "plain.jpg", "", "/"]),
        **dict.fromkeys(["d/y", r"set\c\d\y.jpg"], 4),
        **dict.fromkeys(["plain", "a/plain"], 6),
        "a/same": 2,
        "b/same.jpg": 3,
    }
    assert {name: files.find(name) for name in found} == found


@pytest.mark.parametrize("image_id", ["same", "b/same.jpg", "again"])
def test_annotations_of_an_image_that_is_left_out_go_to_no_other(
    tmp_path: Path, image_id: str
) -> None:
    """One whose file is missing, and one whose id another image has."""
    names = [(1, "a/same.jpg"), (2, "b/same.jpg"), (1, "again.jpg")]
    images = [image(id=id_, file_name=name) for id_, name in names]
    annotations = [annotation(), annotation(id=2, image_id=image_id)]
    root = write(tmp_path, images, annotations, files={"a/same.jpg": picture()})
    (root / "train/b").mkdir()
    index = coco.load(root / "annotations/instances_train.json", root / "train")
    assert [one["id"] for one in index.record(0)["annotations"]] == [1] and len(index) == 1


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([0, 1, 2], "category_id counts from 0 and categories from 1"),
        ([2, 3, 4], "category_id counts from 1 and categories from 0"),
        ([1, 2, 3], ""),
        ([1, 2, 9], ""),
        ([0, 1, 3], ""),
    ],
)
def test_category_ids_that_are_off_by_one_are_told(
    tmp_path: Path, ids: list[int], told: str
) -> None:
    categories = [{"id": n, "name": name} for n, name in enumerate("abc", 1)]
    annotations = [annotation(id=n, category_id=id_) for n, id_ in enumerate(ids, 1)]
    root = write(tmp_path, annotations=annotations, categories=categories)
    file = root / "annotations/instances_train.json"
    for problems in (coco.load(file, root / "train").problems, of_source(file).problems):
        kinds = " ".join(problems.counts)
        assert ("it seems" in kinds) == bool(told) and told in kinds


PADDED = {"000001.jpg": 3, "000002.jpg": 1, "000003.jpg": 2}
"""Files whose names are other numbers than their images' ids."""


def padded(root: Path, ids: Callable[[str, int], Any]) -> Path:
    """A folder of these, with an annotation of each image, its id that of its file's name."""
    return write(
        root,
        images=[image(id=ids(name, id_), file_name=name) for name, id_ in PADDED.items()],
        annotations=[
            annotation(id=int(name[:6]), image_id=name[:6], bbox=[10, 8, 20, 20]) for name in PADDED
        ],
        files=dict.fromkeys(PADDED, picture()),
    )


@pytest.mark.parametrize("own", [False, True], ids=["file name", "text id"])
def test_a_padded_number_is_a_name_before_it_is_a_number(tmp_path: Path, own: bool) -> None:
    """Image 1 is 000002.jpg: an image_id of 000001 is not its. As the id of an image it is."""
    padded(tmp_path, lambda _, id_: f"{id_:06}" if own else id_)
    file = tmp_path / "annotations/instances_train.json"
    index = coco.load(file, tmp_path / "train")
    found = {index.file_name(i): index.record(i)["annotations"][0]["id"] for i in range(3)}
    expected = PADDED if own else {name: int(name[:6]) for name in PADDED}
    assert found == expected
    told = {} if own else {"image_id is the image's file name (matched by it)": 3}
    assert index.problems.counts == told
    truth = of_source(file)
    names = {one["id"]: one["file_name"] for one in truth.images}
    by_name = {names[one["image_id"]]: one["given_id"] for one in truth.annotations}
    assert by_name == expected


def test_a_padded_number_is_one_where_it_is_no_name(tmp_path: Path) -> None:
    index = load(tmp_path, annotations=[annotation(image_id="0001")])
    assert len(index.record(0)["annotations"]) == 1 and index.problems.counts == {}


@pytest.mark.parametrize("ids", [(7, "007"), ("007", 7), ("07", "007"), ("007", "7.0")])
def test_two_ids_that_are_one_number_are_refused(tmp_path: Path, ids: tuple[Any, Any]) -> None:
    content: dict[str, Any] = {
        "images": [image(id=id_, file_name=f"{n}.jpg") for n, id_ in enumerate(ids)],
        "annotations": [annotation(image_id=ids[1])],
        "files": {"0.jpg": picture(), "1.jpg": picture()},
    }
    with pytest.raises(InputError, match=r"image ids .* and .* are one number: write one"):
        load(tmp_path, **content)
    with pytest.raises(InputError, match=r"image ids .* and .* are one number: write one"):
        of_source(tmp_path / "annotations/instances_train.json")
