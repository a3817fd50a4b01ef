"""Results find their images: by file name, or not at all, with the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from coco_folder import annotation, image

from autotimm.evaluation import coco_input, matching, report, truth_files
from autotimm.structures import InputError

CATEGORIES = [{"id": 3, "name": "disc"}, {"id": 7, "name": "star"}]
PLACES = {"a.jpg": 4.0, "b.jpg": 14.0, "sub/a.jpg": 24.0, "prüf.jpg": 34.0}


def truth(ids: dict[str, int]) -> dict[str, Any]:
    """An instance in each image, at a place of its own."""
    return {
        "images": [image(id=id_, file_name=name) for name, id_ in ids.items()],
        "annotations": [
            annotation(id=k, image_id=id_, bbox=[PLACES[name], 8.0, 9.0, 20.0], segmentation=...)
            for k, (name, id_) in enumerate(ids.items(), 1)
        ],
        "categories": CATEGORIES,
    }


IDS = {"b.jpg": 1, "prüf.jpg": 2, "sub/a.jpg": 3, "a.jpg": 4}
NUMBERED = dict(enumerate(sorted(IDS), 1))  # as autotimm predict numbers them


def found(numbered: dict[Any, str], category: int = 3) -> list[dict[str, Any]]:
    return [
        {"image_id": id_, "category_id": category, "bbox": [PLACES[name], 8, 9, 20], "score": 0.9}
        for id_, name in numbered.items()
    ]


def write_images(folder: Path, names: dict[Any, str], categories: Any = CATEGORIES) -> Path:
    listed = [{"id": id_, "file_name": name} for id_, name in names.items()]
    content = {"images": listed, "annotations": [], "categories": categories}
    (folder / "images.json").write_text(json.dumps(content))
    return folder / "results.json"


def box_ap50(entries: list[Any]) -> float:
    return report.measure(truth(IDS), entries).evaluations["bbox"].stats["AP50"]


@pytest.mark.parametrize(
    "written",
    ["/data/val/{}", "val\\{}", "https://host/val/{}?token=1", "./{}", "{}"],
)
def test_results_are_matched_by_file_name(tmp_path: Path, written: str) -> None:
    names = {k: written.format(name.replace("ü", "u\u0308")) for k, name in NUMBERED.items()}
    file = write_images(tmp_path, names)
    entries, lines = matching.fitted(found(NUMBERED), file, truth_files.of_source(truth(IDS)))
    assert box_ap50(entries) == pytest.approx(1)
    assert any("matched by file name" in line for line in lines)


def test_ids_that_are_the_ground_truths_stay() -> None:
    own = {id_: name for name, id_ in IDS.items()}
    assert box_ap50(found(own)) == pytest.approx(1)


def test_ids_in_the_order_of_the_names_are_refused_with_the_way_out() -> None:
    with pytest.raises(InputError, match=r"image ids are not those of .*images\.json") as caught:
        box_ap50(found(NUMBERED))
    assert "\n" not in str(caught.value)
    from_zero = {id_ - 1: name for id_, name in NUMBERED.items() if id_ > 1}
    with pytest.raises(InputError, match="0 stands for the first file name"):
        report.measure(truth({n: i - 1 for n, i in IDS.items()}), found({0: "a.jpg"} | from_zero))


def test_nothing_that_fits_is_told() -> None:
    wrong = [{**one, "bbox": [50, 40, 3, 3]} for one in found(NUMBERED)]
    assert any("no detection fits" in line for line in report.measure(truth(IDS), wrong).remarks)


def test_a_part_of_the_images_is_told(tmp_path: Path) -> None:
    given = truth_files.of_source(truth(IDS))
    file = write_images(tmp_path, {1: "x/b.jpg", 2: "x/elsewhere.jpg"})
    entries, lines = matching.fitted(found({1: "b.jpg", 2: "a.jpg"}), file, given)
    assert [one["image_id"] for one in entries] == [1]
    assert any("left out: 1" in line for line in lines)
    assert any(": 3; nothing found" in line for line in lines)


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    given = truth_files.of_source(truth(IDS))
    others = [{"id": 0, "name": "disc"}, {"id": 1, "name": "star"}]
    file = write_images(tmp_path, NUMBERED, others)
    entries, _ = matching.fitted(found(NUMBERED, category=0), file, given)
    assert {one["category_id"] for one in entries} == {3}
    file = write_images(tmp_path, NUMBERED, [{"id": 0, "name": "comet"}])
    with pytest.raises(InputError, match="'comet' is none"):
        matching.fitted(found(NUMBERED, category=0), file, given)


def test_ids_that_are_texts_are_matched_too(tmp_path: Path) -> None:
    """Results and images.json hold the data set's own ids, as evaluate writes both."""
    content = truth(IDS)
    for kind in ("images", "categories"):
        content[kind] = [{**one, "id": f"{kind}-{one['id']}"} for one in content[kind]]
    for one in content["annotations"]:
        one["image_id"] = f"images-{one['image_id']}"
        one["category_id"] = f"categories-{one['category_id']}"
    own = {f"images-{id_}": name for name, id_ in IDS.items()}
    results = [{**one, "category_id": "categories-3"} for one in found(own)]
    for names in (own, {id_: f"/elsewhere/{name}" for id_, name in own.items()}):
        file = write_images(tmp_path, names, content["categories"])
        given = truth_files.of_source(content)
        entries, _ = matching.fitted(results, file, given)
        measured = report.measure(given, entries).evaluations["bbox"]
        assert measured.stats["AP50"] == pytest.approx(1)


@pytest.mark.parametrize("far", [2**63, 2**64 - 9, 2**70, -(2**70)])
def test_ids_of_more_than_64_bits_stay_apart(tmp_path: Path, far: int) -> None:
    content = truth({name: far + id_ for name, id_ in IDS.items()})
    results = found({far + id_: name for name, id_ in IDS.items()})
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text(json.dumps(results))
    done = report.measure(tmp_path / "truth.json", tmp_path / "found.json")
    assert done.evaluations["bbox"].stats["AP50"] == pytest.approx(1)


@pytest.mark.parametrize(("there", "here"), [("7", 7), (7, "7"), ("x", "x")])
def test_images_have_the_size_that_the_masks_of_results_have(there: Any, here: Any) -> None:
    content = truth({"a.jpg": 1})
    content["images"] = [{"id": there, "file_name": "a.jpg"}]
    content["annotations"][0]["image_id"] = there
    result = {"image_id": here, "segmentation": {"size": [48, 64], "counts": "0"}}
    (one,) = truth_files.of_source(content, coco_input.sizes_of([result])).images
    assert (one["height"], one["width"]) == (48, 64)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({1: "other.jpg"}, "none of its files is in"),
        ({1: "x/b.jpg", 2: "y/b.jpg"}, "are both 'b.jpg'"),
        ({2: "x/b.jpg"}, "has no image of its image_id 1"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, names: dict[int, str], message: str) -> None:
    given = truth_files.of_source(truth(IDS))
    with pytest.raises(InputError, match=message):
        matching.fitted(found({1: "b.jpg"}), write_images(tmp_path, names), given)


def test_a_file_that_says_nothing_of_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.json").write_text("[1]")
    with pytest.raises(InputError, match="does not say which images"):
        matching.fitted([], tmp_path / "r.json", truth_files.of_source(truth(IDS)))
