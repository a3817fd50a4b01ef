"""Results files that are not quite COCO's: read and told, or told what they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotimm.evaluation import box_readings, matching, report
from autotimm.evaluation.coco_input import entries_of
from autotimm.evaluation.truth_files import of_source
from autotimm.structures import InputError

WIDTH, HEIGHT = 96, 64
CATEGORIES = [{"id": 3, "name": "disc"}, {"id": 7, "name": "star"}]


def square(x: int, y: int, side: int) -> dict[str, Any]:
    corners = [x, y, x + side, y, x + side, y + side, x, y + side]
    return {"bbox": [x, y, side, side], "segmentation": [corners]}


def data() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Truths and results that find all of them."""
    rng = np.random.default_rng(5)
    images = [
        {"id": n, "file_name": f"train/im{n:03}.jpg", "width": WIDTH, "height": HEIGHT}
        for n in (11, 12, 13)
    ]
    annotations: list[dict[str, Any]] = []
    for image in images:
        for k, one in enumerate(CATEGORIES):
            shape = square(48 * k + int(rng.integers(4, 20)), int(rng.integers(8, 24)), 12 + 3 * k)
            known = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": one["id"]}
            annotations.append({**known, **shape, "area": 150, "iscrowd": 0})
    keys = ("image_id", "category_id", "bbox", "segmentation")
    results = [
        {k: one[k] for k in keys} | {"score": 0.9 - n / 100} for n, one in enumerate(annotations)
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}, results


def measured(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> tuple[dict[str, float], str]:
    """Evaluates changed results; returns their APs and all remarks."""
    content, results = data()
    for one in results:
        change(one)
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps(results))
    truth = of_source(content)
    entries, lines = matching.fitted(entries_of(file), file, truth)
    found = report.measure(truth, entries, name=str(file))
    stats = {kind: one.stats["AP"] for kind, one in found.evaluations.items()}
    return stats, "\n".join([*lines, *found.remarks])


Change = Callable[[dict[str, Any]], object]
READ: dict[str, tuple[Change, str]] = {
    "as COCO has it": (dict.copy, ""),
    "score as text": (lambda one: one.update(score="0.9"), "score in quotes (read): 6"),
    "bbox as text": (
        lambda one: one.update(bbox=[str(v) for v in one["bbox"]]),
        "bbox of numbers in quotes (read): 6",
    ),
    "bbox by names": (
        lambda one: one.update(bbox=dict(zip("xywh", one["bbox"], strict=True))),
        "bbox of named sides (read): 6",
    ),
    "score in percent": (
        lambda one: one.update(score=100 * one["score"]),
        "scores range from 85 to 90, not from 0 to 1: AP depends on their order alone",
    ),
    "file name": (
        lambda one: one.update(image_id=f"im0{one['image_id']}.jpg"),
        "results whose image_id is a file name, matched by it: 3 images",
    ),
    "path from elsewhere": (
        lambda one: one.update(image_id=f"/data/train/im0{one['image_id']}.jpg"),
        "matched by it: 3 images",
    ),
    "name without extension": (  # of Ultralytics
        lambda one: one.update(image_id=f"im0{one['image_id']}"),
        "matched by it: 3 images",
    ),
    "file_name for image_id": (
        lambda one: one.update(file_name=f"im0{one.pop('image_id')}.jpg"),
        "matched by it: 3 images",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_has_one_reading_is_read_and_told(tmp_path: Path, name: str) -> None:
    change, told = READ[name]
    stats, lines = measured(tmp_path, change)
    assert stats == pytest.approx({"bbox": 1, "segm": 1})
    assert told in lines and bool(lines) == bool(told)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda found: [one | {"score": 0.5} for one in found], "all scores are 0.5: AP then"),
        (lambda found: found + found[:4], "box, class and score as another one: 4; AP counts"),
        (lambda found: found[:4], "only 2 of 3 images with truths have a detection"),
        (lambda found: [*found, *found[:4]][1:], "class and score as another one: 3;"),
        (lambda found: found[:5], ""),
    ],
)
def test_what_is_odd_about_all_results_is_told(
    change: Callable[[list[Any]], list[Any]], told: str
) -> None:
    content, results = data()
    found = report.measure(of_source(content), change(results), name="r")
    assert len(found.remarks) == bool(told)
    assert all(told in line for line in found.remarks)


@pytest.mark.parametrize("padded", [False, True], ids=["of other ids", "of the ids"])
def test_a_padded_number_is_a_name_before_it_is_an_id(tmp_path: Path, padded: bool) -> None:
    """Image 11 may be 000012.jpg, and tools write the name of a file without its extension."""
    content, results = data()
    names = {id_: f"{11 + (id_ - 11 + (not padded)) % 3:06}" for id_ in (11, 12, 13)}
    for one in content["images"]:
        one["file_name"] = f"{names[one['id']]}.jpg"
    for one in results:
        one["image_id"] = names[one["image_id"]]
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps(results))
    truth = of_source(content)
    entries, lines = matching.fitted(entries_of(file), file, truth)
    assert report.measure(truth, entries, name="r").evaluations["segm"].stats["AP"] == 1
    told = "results whose image_id is a file name, matched by it: 3 images"
    assert lines == ([] if padded else [told])


def corners(one: dict[str, Any]) -> None:
    x, y, w, h = one["bbox"]
    one["bbox"] = [x, y, x + w, y + h]


def centre(one: dict[str, Any]) -> None:
    x, y, w, h = one["bbox"]
    sides = (WIDTH, HEIGHT, WIDTH, HEIGHT)
    shares = zip((x + w / 2, y + h / 2, w, h), sides, strict=True)
    one["bbox"] = [value / side for value, side in shares]


def turned(one: dict[str, Any]) -> None:
    x, y, w, h = one["bbox"]
    one["bbox"] = [y, x, h, w]


CONVENTIONS: list[tuple[Change, str]] = [
    (corners, "as x1, y1, x2, y2"),
    (centre, "as centre x, centre y, w, h (YOLO's) in shares of the image"),
    (turned, "as y, x, h, w"),
]


@pytest.mark.parametrize(("convention", "name"), CONVENTIONS)
def test_boxes_of_another_convention_are_told(
    tmp_path: Path, convention: Change, name: str
) -> None:
    """By the masks where there are some, else by the truths. The numbers stay pycocotools'."""
    stats, lines = measured(tmp_path, convention)
    assert stats["bbox"] < 0.3 and stats["segm"] == pytest.approx(1)
    assert f"bbox is far from its mask, fits {name} (box AP takes it as it is): 6" in lines
    assert "compared" not in lines
    stats, lines = measured(tmp_path, lambda one: (convention(one), one.pop("segmentation")))
    assert stats["bbox"] < 0.3 and "segm" not in stats
    assert f"of 6 compared, 6 fit a truth {name}, and 0 as they are" in lines


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [(-2.5, 0.5, "from -2.5 to 0.5"), (0.5, 97, "from 0.5 to 97"), (-3, 8, "from -3 to 8")],
)
def test_scores_that_are_no_shares_are_told(
    tmp_path: Path, low: float, high: float, told: str
) -> None:
    """Logits and percentages: their order is that of shares, and so is the AP."""
    scores = iter(np.linspace(low, high, 6).tolist())
    stats, lines = measured(tmp_path, lambda one: one.update(score=next(scores)))
    assert f"scores range {told}, not from 0 to 1: AP depends on their order alone" in lines
    assert stats == pytest.approx({"bbox": 1, "segm": 1})


def test_scores_from_0_to_1_are_not_remarked_on(tmp_path: Path) -> None:
    scores = iter(np.linspace(0, 1, 6).tolist())
    assert "scores range" not in measured(tmp_path, lambda one: one.update(score=next(scores)))[1]


@pytest.mark.parametrize(("crowds", "why"), [(True, ": all 6 truths are crowds"), (False, "")])
def test_an_ap_of_minus_one_is_explained(crowds: bool, why: str) -> None:
    content, results = data()
    for one in content["annotations"]:
        one["iscrowd"] = 1
    if not crowds:
        content["annotations"] = []
    found = report.measure(of_source(content), results if crowds else [], name="theirs.json")
    assert {one.stats["AP"] for one in found.evaluations.values()} == {-1.0}
    assert f"there is nothing to find{why}; AP is -1, as COCO has it" in found.remarks


def test_crowded_images_are_not_compared_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_readings, "_PAIRS", 3)
    _, lines = measured(tmp_path, lambda one: (corners(one), one.pop("segmentation")))
    assert "of 3 compared, 3 fit a truth as x1, y1, x2, y2" in lines


def test_boxes_that_are_only_bad_are_not_taken_for_another_convention(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def bad(one: dict[str, Any]) -> None:
        del one["segmentation"]
        one["bbox"] = [*rng.uniform(0, 40, 2), *rng.uniform(20, 40, 2)]

    stats, lines = measured(tmp_path, bad)
    assert stats["bbox"] < 0.3 and "compared" not in lines


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_id": "im099.jpg"},
            r"image_id 'im099\.jpg' is not in the ground truth, nor a file",
        ),
        ({"image_id": None}, "is not an object with an image_id; each has image_id, category_id"),
        ({"score": "90%"}, "score is '90%', not a number"),
        ({"score": True}, "score is True, not a number"),
        ({"bbox": [1, 2, 3, 4, 5], "segmentation": None}, r"not \[x, y, width, height\]"),
    ],
)
def test_what_has_none_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measured(tmp_path, lambda one: one.update(change))


def test_a_name_of_two_images_is_refused(tmp_path: Path) -> None:
    content, results = data()
    content["images"][1]["file_name"] = "val/im011.jpg"
    results[0]["image_id"] = "im011.jpg"
    with pytest.raises(InputError, match=r"'im011\.jpg' may be 'train/im011\.jpg' and 'val/im011"):
        matching.fitted(results, tmp_path / "theirs.json", of_source(content))
