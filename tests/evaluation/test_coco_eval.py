"""The official numbers: published figures, pycocotools' own way through files, and refusals."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folder import picture, write
from official import coco_of, official
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from autotimm.coco import masks
from autotimm.coco.index import Category, load
from autotimm.evaluation import coco_eval
from autotimm.evaluation.coco_eval import STATS, compare, evaluate, to_results
from autotimm.evaluation.mistakes import errors
from autotimm.evaluation.truth_files import of_source
from autotimm.structures import InputError

TRUTH = "metrics/val2014_100/instances_val2014_100.json"
RESULTS = "metrics/val2014_100/instances_val2014_fake{}100_results.json"
# val2014_fake_eval_res.txt, published with cocoapi, in the order of STATS.
PUBLISHED = {
    "segm": [0.320, 0.562, 0.299, 0.387, 0.310, 0.327, 0.268, 0.415, 0.417, 0.469, 0.377, 0.381],
    "bbox": [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564],
}


def through_pycocotools(truth: Path, results: Path, iou_type: str) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        found = coco.loadRes(str(results))
    return official(coco, found, iou_type)


def small_truth() -> dict[str, Any]:
    """Two images, an instance and a crowd on the first; ids that start at 0."""
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "height": 20, "width": 30},
            {"id": 9, "file_name": "b.jpg", "height": 20, "width": 30},
        ],
        "annotations": [
            {
                "id": 0,
                "image_id": 7,
                "category_id": 3,
                "bbox": [2, 2, 8, 8],
                "area": 64,
                "iscrowd": 0,
                "segmentation": [[2, 2, 10, 2, 10, 10, 2, 10]],
            },
            {
                "id": 1,
                "image_id": 7,
                "category_id": 3,
                "bbox": [15, 0, 15, 20],
                "area": 300,
                "iscrowd": 1,
                "segmentation": {"size": [20, 30], "counts": [300, 300]},
            },
        ],
        "categories": [{"id": 0, "name": "none"}, {"id": 3, "name": "thing"}],
    }


def result(**changes: Any) -> dict[str, Any]:
    """A result that fits the first annotation of ``small_truth``."""
    entry = {
        "image_id": 7,
        "category_id": 3,
        "score": 0.9,
        "bbox": [2.0, 2.0, 8.0, 8.0],
        "segmentation": masks.to_rle([[2, 2, 10, 2, 10, 10, 2, 10]], 20, 30),
    }
    return {key: value for key, value in (entry | changes).items() if value is not None}


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_published_figures(shared_data: Path, iou_type: str) -> None:
    stats = evaluate(shared_data / TRUTH, shared_data / RESULTS.format(iou_type), iou_type)  # type: ignore[arg-type]
    assert tuple(stats) == STATS
    assert [round(value, 3) for value in stats.values()] == PUBLISHED[iou_type]


@pytest.mark.parametrize(
    ("iou_type", "kind"), [("segm", "segm"), ("bbox", "bbox"), ("bbox", "segm")]
)
def test_equals_pycocotools(shared_data: Path, iou_type: str, kind: str) -> None:
    truth, results = shared_data / TRUTH, shared_data / RESULTS.format(kind)
    expected = through_pycocotools(truth, results, iou_type)
    assert evaluate(truth, results, iou_type) == expected  # type: ignore[arg-type]


def test_lists_give_what_files_give_and_stay_as_they_were(shared_data: Path) -> None:
    truth = json.loads((shared_data / TRUTH).read_text())
    results = json.loads((shared_data / RESULTS.format("segm")).read_text())
    before = copy.deepcopy((truth, results))
    stats = evaluate(truth, results, "segm")
    assert stats == evaluate(shared_data / TRUTH, shared_data / RESULTS.format("segm"), "segm")
    assert (truth, results) == before


def test_a_size_class_is_the_masks_not_the_boxes() -> None:
    # A thin diagonal: its box has 90 x 90 pixels (medium), its mask far fewer than 32 x 32.
    mask = np.eye(100, dtype=np.uint8)
    mask[90:] = 0
    rle = masks.encode(mask)
    truth = small_truth()
    truth["images"] = [{"id": 7, "height": 100, "width": 100}]
    box = [0, 0, 90, 90]
    truth["annotations"] = [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": box, "area": 90, "iscrowd": 0}
        | {"segmentation": rle}
    ]
    # One that matches and, with a higher score, one that does not: false positives count by area.
    wrong = masks.encode(np.fliplr(mask))
    results = [
        result(bbox=box, segmentation=rle, score=0.5),
        result(bbox=box, segmentation=wrong, score=0.9),
    ]
    assert evaluate(truth, results, "segm")["AP_small"] == pytest.approx(0.5)


def test_nothing_found_is_zero_and_nothing_to_find_is_minus_one() -> None:
    assert evaluate(small_truth(), [], "segm")["AP"] == 0
    assert evaluate(small_truth(), [], "segm")["AP_large"] == -1
    truth = small_truth()
    truth["annotations"] = []
    assert set(evaluate(truth, [result()], "bbox").values()) == {-1}


def test_crowds_neither_count_nor_punish() -> None:
    inside = result(bbox=[16.0, 1.0, 5.0, 5.0], score=0.99)
    assert evaluate(small_truth(), [inside, result()], "bbox")["AP"] == pytest.approx(1)
    outside = result(bbox=[2.0, 12.0, 5.0, 5.0], score=0.99)
    assert evaluate(small_truth(), [outside, result()], "bbox")["AP"] == pytest.approx(0.5)


@pytest.mark.parametrize(("worse", "ap"), [(99, 1.0 / 100), (100, 0.0)])
def test_a_hundred_detections_an_image_count(worse: int, ap: float) -> None:
    """Of each class; the right one comes after so many wrong ones."""
    wrong = [result(bbox=[2.0, 12.0, 5.0, 5.0], score=0.9) for _ in range(worse)]
    stats = evaluate(small_truth(), [*wrong, result(score=0.5)], "bbox")
    assert stats["AP"] == pytest.approx(ap)


def test_an_annotation_with_id_zero_counts() -> None:
    assert evaluate(small_truth(), [result()], "segm")["AP"] == pytest.approx(1)


def test_area_and_iscrowd_may_be_missing() -> None:
    truth = small_truth()
    del truth["annotations"][0]["area"], truth["annotations"][0]["iscrowd"]
    stats = evaluate(truth, [result()], "segm")
    assert (stats["AP"], stats["AP_small"]) == (pytest.approx(1), pytest.approx(1))


def test_to_results_and_ground_truth_are_coco_files(tmp_path: Path) -> None:
    rle = masks.to_rle([[2, 2, 10, 2, 10, 10, 2, 10]], 20, 30)
    detections: Any = {
        "boxes": torch.tensor([[2.0, 2.0, 10.0, 10.0], [0.0, 0.0, 4.0, 3.0]]),
        "labels": torch.tensor([1, 0]),
        "scores": torch.tensor([0.75, 0.5]),
        "rles": [rle, masks.encode(np.ones((20, 30), np.uint8))],
    }
    results = to_results(detections, 7, [0, 3])
    assert results[0] == {
        "image_id": 7,
        "category_id": 3,
        "bbox": [2.0, 2.0, 8.0, 8.0],
        "score": 0.75,
        "segmentation": rle,
    }
    assert results[1]["category_id"] == 0
    assert coco_mask.area(results[1]["segmentation"]) == 600

    record: Any = {"image_id": 7, "file_name": "a.jpg", "height": 20, "width": 30}
    annotation = small_truth()["annotations"][0]
    record["annotations"] = [
        {key: value for key, value in annotation.items() if key != "image_id"}
        | {"segmentation": rle, "id": 5}
    ]
    truth = coco_eval.ground_truth([record], [Category(0, "none"), Category(3, "thing")])
    (tmp_path / "truth.json").write_text(json.dumps(truth | {"info": {}}))
    (tmp_path / "results.json").write_text(json.dumps(results))
    for iou_type in ("bbox", "segm"):
        # loadRes would take the boxes' areas: compare what does not depend on them.
        ours = evaluate(tmp_path / "truth.json", tmp_path / "results.json", iou_type)  # type: ignore[arg-type]
        truths = through_pycocotools(tmp_path / "truth.json", tmp_path / "results.json", iou_type)
        assert ours["AP"] == truths["AP"] == pytest.approx(1)

    del detections["rles"]
    assert "segmentation" not in to_results(detections, 7, [0, 3])[0]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"annotations": []}, "must hold a list"),
        ([3], "result 1 is not an object"),
        ([result(), result(image_id=8)], "result 2: image_id 8 is not in the ground truth"),
        ([result(image_id=[7])], "image_id [7] is not in the ground truth"),
        ([result(image_id=None)], "not an object with an image_id"),
        ([result(category_id=1)], "category_id 1 is not in the ground truth"),
        ([result(category_id=True)], "category_id True is not in the ground truth"),
        ([{"image_id": 7, "category_id": 3}], "no 'score'"),
        ([{"image_id": 7, "score": 0.5}], "no 'category_id'"),
        ([result(score="high")], "score is 'high'"),
        ([result(score=float("nan"))], "score is nan"),
        ([result(segmentation=None)], "has no segmentation"),
        ([result(segmentation={"size": [9, 9], "counts": [81]})], "another size than the image"),
    ],
)
def test_results_that_do_not_fit_are_refused_in_one_line(results: Any, message: str) -> None:
    with pytest.raises(InputError, match="result") as caught:
        evaluate(small_truth(), results, "segm")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [None, [1], True, ..., 7])
def test_images_without_an_id_of_their_own_are_left_out_as_of_a_folder(
    number: Any, tmp_path: Path
) -> None:
    """The kinds that are counted are those of a COCO folder of the same file."""
    truth = small_truth()
    if number is ...:
        del truth["images"][1]["id"]
    else:
        truth["images"][1]["id"] = number
    read = of_source(truth)
    assert [image["id"] for image in read.images] == [7] and len(read.annotations) == 2
    coco = write(tmp_path, *truth.values(), files={"a.jpg": picture(30, 20), "b.jpg": b""})
    index = load(coco / "annotations/instances_train.json", coco / "train")
    assert read.problems.counts == index.problems.counts
    assert evaluate(truth, [result()], "bbox")["AP"] == pytest.approx(1)


def test_a_file_none_of_whose_annotations_can_be_used_is_refused_as_a_folder_is(
    tmp_path: Path,
) -> None:
    truth = small_truth()
    for one in truth["annotations"]:
        one["category_id"] = 44
    lost = "none of its 2 annotations can be used: annotation of an unknown category (left out): 2"
    with pytest.raises(InputError) as of_file:
        evaluate(truth, [result()], "bbox")
    coco = write(tmp_path, *truth.values(), files={"a.jpg": picture(30, 20), "b.jpg": b""})
    with pytest.raises(InputError) as of_folder:
        load(coco / "annotations/instances_train.json", coco / "train")
    assert lost in str(of_file.value) and lost in str(of_folder.value)


@pytest.mark.parametrize(
    ("given", "other"), [("7f9c-a", "a2"), ("7", "9"), (7.0, 9.0), (2**64, 0.5)]
)
def test_ids_may_be_text_floats_or_large(given: Any, other: Any) -> None:
    truth = small_truth()
    for image, new in zip(truth["images"], (given, other), strict=True):
        image["id"] = new
    for one in truth["annotations"]:
        one["image_id"] = given
    assert evaluate(truth, [result(image_id=given)], "segm")["AP"] == pytest.approx(1)


@pytest.mark.parametrize("box", [[1, 2, 3], "box", [0, 0, 1, float("inf")], [0, 0, 1, None]])
def test_bad_boxes_are_refused(box: Any) -> None:
    with pytest.raises(InputError, match="result 1: bbox is"):
        evaluate(small_truth(), [result(bbox=box, segmentation=None)], "bbox")


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match=r"text\.json: not a JSON file"):
        evaluate(small_truth(), tmp_path / "text.json", "bbox")
    with pytest.raises(InputError, match=r"missing\.json: cannot be read: No such file"):
        evaluate(small_truth(), tmp_path / "missing.json", "bbox")
    with pytest.raises(InputError, match=r"list\.json: not a COCO file: it holds a list"):
        evaluate(tmp_path / "list.json", [], "bbox")
    with pytest.raises(InputError, match="choose bbox or segm"):
        evaluate(small_truth(), [], "keypoints")  # type: ignore[arg-type]


def random_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Crowds, images without anything, gaps in the ids, equal scores, more than 100 detections."""
    rng = np.random.default_rng(seed)
    categories = [{"id": i, "name": str(i)} for i in (1, 2, 7, 90)]
    images = [{"id": 10 + 3 * i, "height": 120, "width": 160} for i in range(8)]

    def rle(x: int, y: int, w: int, h: int) -> Any:
        mask = np.zeros((120, 160), np.uint8)
        mask[y : y + h, x : x + w] = 1
        return masks.encode(mask)

    def extent() -> dict[str, Any]:
        w, h = (int(side) for side in rng.integers(4, 110, 2))
        x, y = int(rng.integers(0, 160 - w)), int(rng.integers(0, 121 - h))
        return {"bbox": [x, y, w, h], "segmentation": rle(x, y, w, h)}

    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images[1:]:
        for _ in range(int(rng.integers(0, 12))):
            one = {"image_id": image["id"], "category_id": int(rng.choice([1, 2, 7]))} | extent()
            area = one["bbox"][2] * one["bbox"][3]
            crowd = int(rng.random() < 0.2)
            annotations.append(one | {"id": len(annotations) + 1, "area": area, "iscrowd": crowd})
            if rng.random() < 0.8:
                x, y, w, h = one["bbox"]
                w, h = max(w - int(rng.integers(0, 6)), 2), max(h - int(rng.integers(0, 6)), 2)
                shrunk = {"bbox": [x, y, w, h], "segmentation": rle(x, y, w, h)}
                results.append(one | shrunk | {"score": float(rng.integers(1, 6) / 5)})
    for _ in range(150):
        image = images[int(rng.integers(0, 3))]
        one = {"image_id": image["id"], "category_id": int(rng.choice([1, 90]))} | extent()
        results.append(one | {"score": float(rng.integers(1, 20) / 40)})
    truth = {"images": images, "annotations": annotations, "categories": categories}
    return truth, results


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_random_cases_and_each_class_equal_pycocotools(iou_type: Any, seed: int) -> None:
    truth, results = random_case(seed)
    found = copy.deepcopy(results)
    for number, one in enumerate(found, 1):
        area = one["bbox"][2] * one["bbox"][3]
        one |= {"id": number, "area": area, "iscrowd": 0}
    both = coco_of(copy.deepcopy(truth)), coco_of(copy.deepcopy(truth) | {"annotations": found})
    measured = compare(truth, results, iou_type)
    assert measured.stats == pytest.approx(official(*both, iou_type), abs=1e-9)
    for one in measured.classes:
        expected = official(*both, iou_type, one.id)
        got = {"AP": one.ap, "AP50": one.ap50, "AP75": one.ap75, "AR100": one.ar}
        assert got == pytest.approx({name: expected[name] for name in got}, abs=1e-9)
        singles = [a for a in truth["annotations"] if not a["iscrowd"]]
        assert one.instances == sum(a["category_id"] == one.id for a in singles)


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_ids_below_0_are_taken_as_pycocotools_takes_them(iou_type: Any) -> None:
    truth, results = random_case(3)
    plain = errors(truth, results, iou_type, 0.3)
    for one in (*truth["annotations"], *results):
        one["image_id"] -= 20
        one["category_id"] -= 8
    for one in (*truth["images"], *truth["categories"]):
        one["id"] -= 20 if "height" in one else 8
    assert min(one["id"] for one in truth["images"]) < 0
    found = copy.deepcopy(results)
    for number, one in enumerate(found, 1):
        area = one["bbox"][2] * one["bbox"][3]
        one |= {"id": number, "area": area, "iscrowd": 0}
    both = coco_of(copy.deepcopy(truth)), coco_of(copy.deepcopy(truth) | {"annotations": found})
    measured = compare(truth, results, iou_type)
    assert measured.stats == pytest.approx(official(*both, iou_type), abs=1e-9)
    assert [one.id for one in measured.classes] == [-7, -6, -1, 82]
    for one in measured.classes[:3]:
        assert one.ap == pytest.approx(official(*both, iou_type, one.id)["AP"], abs=1e-9)
    moved = errors(truth, results, iou_type, 0.3)
    assert (moved.matrix == plain.matrix).all()
    assert moved.images == {id_ - 20: counts for id_, counts in plain.images.items()}
    assert moved.label_errors == [
        one
        | {"image_id": one["image_id"] - 20, "category_id": one["category_id"] - 8}
        | ({} if one["annotated"] is None else {"annotated": one["annotated"] - 8})
        for one in plain.label_errors
    ]
    assert plain.label_errors


def test_errors_are_counted_by_class_and_image() -> None:
    truth = small_truth()
    other = {
        "bbox": [2, 2, 8, 8],
        "area": 64,
        "iscrowd": 0,
        "segmentation": [[2, 2, 10, 2, 10, 10]],
    }
    truth["annotations"].append(other | {"id": 8, "image_id": 9, "category_id": 0})
    found = [
        result(),  # right
        result(image_id=9, score=0.95),  # another class than category 0's
        result(bbox=[20.0, 12.0, 5.0, 5.0], score=0.9),  # in the crowd
        result(bbox=[2.0, 12.0, 5.0, 5.0], score=0.8),  # nothing there
        result(bbox=[2.0, 12.0, 5.0, 5.0], score=0.2),  # does not count
    ]
    told = errors(truth, found, "bbox", 0.5)
    # Rows 0, 3, nothing; columns likewise.
    assert told.matrix.tolist() == [[0, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert told.images == {7: (1, 1, 0), 9: (0, 1, 1)}
    wrong = [one for one in told.label_errors if one["type"] == "wrong_label"]
    assert [
        (w["image_id"], w["category_id"], w["annotated"], w["annotation_id"]) for w in wrong
    ] == [(9, 3, 0, 8)]


def spread(boxes: list[list[float]], category: int) -> list[dict[str, Any]]:
    return [
        {"image_id": 7, "category_id": category, "bbox": box, "area": box[2] * box[3]}
        for box in boxes
    ]


PLACES = [[5.0 + 40 * k, 5.0, 30.0, 30.0] for k in range(6)]


@pytest.mark.parametrize(
    ("kind", "wrong", "mended"),
    [
        ("wrong class", {"place": 5, "category_id": 0}, {"place": 5}),
        ("badly placed", {"place": 5, "bbox": [222, 5, 30.0, 30.0]}, {"place": 5}),
        ("nothing there", {"bbox": [100.0, 60.0, 20.0, 20.0]}, None),
        ("found twice", {"place": 0, "score": 0.6}, None),
    ],
)
def test_what_an_error_costs_is_what_its_mending_gains(kind: str, wrong: Any, mended: Any) -> None:
    truth = {
        "images": [{"id": 7, "height": 100, "width": 300}],
        "categories": [{"id": 0, "name": "none"}, {"id": 3, "name": "thing"}],
        "annotations": [
            one | {"id": k}
            for k, one in enumerate([*spread(PLACES, 3), *spread([[5, 70, 25, 25]], 0)])
        ],
    }

    def entry(place: int = 0, **changes: Any) -> dict[str, Any]:
        return result(bbox=PLACES[place], segmentation=None, score=0.7) | changes

    # One of less score comes after the error, and one is missed.
    right = [entry(k, score=0.9) for k in range(3)] + [entry(3, score=0.2)]
    right += [result(bbox=[5, 70, 25, 25], segmentation=None, category_id=0, score=0.5)]
    before = compare(truth, [*right, entry(**wrong)], "bbox")
    after = compare(truth, [*right, entry(**mended)] if mended else right, "bbox")
    gain = after.stats["AP50"] - before.stats["AP50"]
    assert gain > 0.005
    assert before.lost[kind] == pytest.approx(gain, abs=1e-9)
    others = before.lost.keys() - {kind, "missed"}
    assert all(before.lost[other] == 0 for other in others)

    # Place 4 is missed, and place 5 where the error does not stand for it.
    missed = {4} if "place" in wrong and wrong["place"] == 5 else {4, 5}
    truth["annotations"] = [a for k, a in enumerate(truth["annotations"]) if k not in missed]
    without = compare(truth, [*right, entry(**wrong)], "bbox")
    assert before.lost["missed"] == pytest.approx(
        without.stats["AP50"] - before.stats["AP50"], abs=1e-9
    )


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("categories", {"id": None}, "categories[0] has no 'id', a number or text"),
        ("categories", {"id": 3}, "has id 3, which 'none' has"),
        ("images", {"id": []}, "none of its 2 annotations can be used"),
    ],
)
def test_odd_ground_truth_is_refused_in_one_line(part: str, changes: Any, message: str) -> None:
    truth = small_truth()
    truth[part][0] |= changes
    with pytest.raises(InputError, match="ground truth") as caught:
        evaluate(truth, [result()], "bbox")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_annotations_of_no_category_are_left_out_as_pycocotools_does() -> None:
    truth = small_truth()
    truth["annotations"].append(truth["annotations"][0] | {"id": 5, "category_id": 44})
    assert evaluate(truth, [result()], "bbox")["AP"] == pytest.approx(1)
