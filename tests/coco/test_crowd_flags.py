"""What annotations are marked as under other keys than COCO's: crowds, to be ignored, deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from coco_folder import annotation, image
from coco_read import load, read

from autotimm.coco.flags import DELETED, settled
from autotimm.evaluation.truth_files import of_source
from autotimm.structures import InputError

CROWDS = [
    {"isCrowd": 1},
    {"is_crowd": True},
    {"IsCrowd": "true"},
    {"attributes": {"is_crowd": True, "occluded": False}},
    {"attributes": {"iscrowd": 1}},
    {"IsGroupOf": 1},  # of FiftyOne's export of Open Images
    {"isgroupof": 1},  # of openimages2coco
    {"attributes": {"is_group_of": True}},
]


def said(**changes: Any) -> tuple[dict[str, Any], list[str]]:
    kinds: list[str] = []
    return settled(annotation(**changes), kinds.append), kinds


def key_of(flag: dict[str, Any]) -> str:
    ((key, value),) = flag.items()
    return f"attributes.{next(iter(value))}" if isinstance(value, dict) else key


@pytest.mark.parametrize("flag", CROWDS, ids=key_of)
def test_a_crowd_is_one_under_any_key(tmp_path: Path, flag: dict[str, Any]) -> None:
    other = annotation(id=2, category_id=7)
    content = {"annotations": [annotation(iscrowd=..., **flag), other]}
    (record,), odd = read(tmp_path, **content)
    assert [one["iscrowd"] for one in record["annotations"]] == [1, 0]
    assert odd == {f"no iscrowd ({key_of(flag)}'s taken)": 1}
    index = load(tmp_path, **content)
    assert index.untrained() == ["disc"] and index.trained_ids(0) == {7}


@pytest.mark.parametrize("flag", CROWDS, ids=key_of)
@pytest.mark.parametrize("given", [0, False, "0"])
def test_iscrowd_decides_where_it_is_there(
    tmp_path: Path, flag: dict[str, Any], given: object
) -> None:
    (record,), odd = read(tmp_path, annotations=[annotation(iscrowd=given, **flag)])
    assert record["annotations"][0]["iscrowd"] == 0
    assert odd == {f"{key_of(flag)} is 1, but iscrowd 0 (iscrowd's taken)": 1}
    assert said(**{"iscrowd": 1, **flag})[1] == []  # both say the same


def test_what_says_nothing_changes_nothing() -> None:
    for changes in (
        {"crowd": 12},  # a number of objects
        {"crowd": "dense"},
        {"is_group_of": None},
        {"attributes": {"occluded": True}},
        {"attributes": [{"name": "crowd"}]},
        {"difficult": 0, "ignored": False, "IsGroupOf": 0},
    ):
        for iscrowd in (..., 0):
            raw, odd = said(iscrowd=iscrowd, **changes)
            no_crowd = changes.get("IsGroupOf") == 0 and iscrowd is ...
            assert odd == (["no iscrowd (IsGroupOf's taken)"] if no_crowd else [])
            assert raw.get("iscrowd", 0) == 0 and "ignore" not in raw


def test_keys_that_contradict_each_other() -> None:
    raw, odd = said(iscrowd=..., isCrowd=1.0, attributes={"is_crowd": "0"})
    assert "iscrowd" not in raw
    assert odd == ["no iscrowd, and other keys contradict each other (none taken)"]
    assert said(iscrowd=1, is_crowd=0)[1] == ["is_crowd is 0, but iscrowd 1 (iscrowd's taken)"]
    assert said(iscrowd=1, IsGroupOf=0)[1] == []  # a crowd need not be of one kind


def test_ignored_is_ignore_where_nothing_else_is_said(tmp_path: Path) -> None:
    (record,), odd = read(tmp_path, annotations=[annotation(iscrowd=..., ignored=True)])
    assert record["annotations"][0]["ignore"] == 1
    assert odd == {"ignored is 1 (taken as ignore: 1)": 1, "iscrowd missing (0 taken)": 1}
    assert load(tmp_path, annotations=[annotation(iscrowd=..., ignored=True)]).ignored() == 1
    ordinary = "ignored is 1 (taken as an ordinary instance; ignore: 1 would leave it out)"
    for changes in ({}, {"ignore": 0}):
        raw, odd_kinds = said(ignored=1, **changes)
        assert not raw.get("ignore") and odd_kinds == [ordinary]
    assert said(ignored=1, ignore=1)[1] == said(ignored=1, iscrowd=1)[1] == []


@pytest.mark.parametrize("key", ["difficult", "crowd"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("iscrowd", [..., 0])
def test_what_has_no_one_meaning_is_told_and_trained_on(
    iscrowd: object, nested: bool, key: str
) -> None:
    flag: dict[str, Any] = {"attributes": {key: True}} if nested else {key: 1}
    raw, odd = said(iscrowd=iscrowd, **flag)
    assert not raw.get("iscrowd") and not raw.get("ignore")
    told = "is 1 (taken as an ordinary instance; ignore: 1 would leave it out)"
    assert odd == [f"{key_of(flag)} {told}"]
    assert said(iscrowd=1, **flag)[1] == said(ignore=1, **flag)[1] == []


@pytest.mark.parametrize("place", ["attributes", "metadata", "extra", "tags"])
@pytest.mark.parametrize(
    "text",
    [
        '{"iscrowd": true, "occluded": false}',
        '[{"name": "is_crowd", "value": "1"}]',
        json.dumps(json.dumps({"isCrowd": 1})),
        "{'occluded': False, 'iscrowd': True}",
        "occluded, iscrowd",
        "occluded: 0; iscrowd: 1",
        "occluded=no, iscrowd=yes",
    ],
)
def test_attributes_may_be_text(tmp_path: Path, place: str, text: str) -> None:
    content = {"annotations": [annotation(iscrowd=..., **{place: text})]}
    (record,), odd = read(tmp_path, **content)
    assert record["annotations"][0]["iscrowd"] == 1
    (told,) = odd
    assert told.startswith(f"no iscrowd ({place}.") and told.endswith("'s taken)")
    assert load(tmp_path, **content).untrained() == ["disc"]


@pytest.mark.parametrize("text", ["", "occluded", "{}", "no crowd: here", "[1, 2]", "\ud800", "{"])
def test_text_that_marks_nothing_changes_nothing(text: str) -> None:
    assert said(attributes=text) == (annotation(attributes=text), [])


def test_a_polygon_that_is_a_box_is_told() -> None:
    kind = "isbbox is 1, so its polygon is a box and no outline (kept, as a mask)"
    assert said(isbbox=True) == (annotation(isbbox=True), [kind])
    assert said(isbbox=False)[1] == []


@pytest.mark.parametrize(
    "mark",
    [
        {"deleted": True},
        {"isDeleted": "true"},
        {"is_deleted": 1, "deleted_at": None},
        {"deleted_at": "2024-05-01T12:00:00"},
        {"deleted_date": {"$date": 1714564800000}},
    ],
)
def test_what_is_deleted_is_neither_learnt_nor_counted(tmp_path: Path, mark: dict) -> None:
    kept = annotation(id=2, deleted=False, deleted_at="2024", category_id=7)
    content: dict[str, Any] = {"annotations": [annotation(**mark), kept]}
    (record,), odd = read(tmp_path, **content)
    assert [one["id"] for one in record["annotations"]] == [2] and "unmasked" not in record
    assert odd == {DELETED: 1}
    assert load(tmp_path, **content).used_ids() == [7]
    file = tmp_path / "annotations" / "instances_train.json"
    truth = of_source(file)
    assert truth.problems.counts == odd
    assert [one["given_id"] for one in truth.annotations] == [2]


def test_a_deleted_image_is_left_out_with_its_annotations(tmp_path: Path) -> None:
    images = [image(deleted=True), image(id=2, deleted=False)]
    annotations = [annotation(), annotation(id=2, image_id=2)]
    records, odd = read(tmp_path, images=images, annotations=annotations)
    assert [record["image_id"] for record in records] == [2]
    lost = "annotation of an image that is left out (left out)"
    assert odd == {"image is marked as deleted (image left out)": 1, lost: 1}
    truth = of_source(tmp_path / "annotations" / "instances_train.json")
    assert "image is marked as deleted (image left out)" in truth.problems.counts


def test_a_file_of_deleted_annotations_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 annotations can be used: annotation is marked as del"):
        load(tmp_path, annotations=[annotation(deleted=True)])


@pytest.mark.parametrize(
    "attributes",
    [
        [{"name": "occluded", "value": False}, {"name": "iscrowd", "value": "true"}],
        [{"key": "is_crowd", "value": 1, "id": 3}],
        [{"isCrowd": True}],
        ["occluded", "iscrowd"],
    ],
)
def test_attributes_may_be_a_list(tmp_path: Path, attributes: list[Any]) -> None:
    other = annotation(id=2, category_id=7, attributes=[{"name": "iscrowd", "value": False}])
    content = {"annotations": [annotation(iscrowd=..., attributes=attributes), other]}
    (record,), odd = read(tmp_path, **content)
    assert [one["iscrowd"] for one in record["annotations"]] == [1, 0]
    (told,) = odd
    assert told.startswith("no iscrowd (attributes.") and told.endswith("'s taken)")
    assert load(tmp_path, **content).untrained() == ["disc"]
    ignored = [{"name": "ignored", "value": "1"}]
    assert said(iscrowd=..., attributes=ignored)[0]["ignore"] == 1


def test_lists_that_tell_nothing() -> None:
    lists = ([{"name": "crowd"}], [{"value": 1}], [3, None, ["iscrowd"]], [{"name": 5, "value": 1}])
    for attributes in lists:
        assert said(iscrowd=..., attributes=attributes)[1] == []
