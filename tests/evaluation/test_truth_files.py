"""Several annotation files without their images, joined as ``autotimm shard`` joins them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from official import coco_of, official
from test_every_truth import CATEGORIES, odd_file, written

from autotimm.cli import evaluate
from autotimm.evaluation import truth_files
from autotimm.evaluation.coco_input import OF_NO_SIZE, prepared
from autotimm.evaluation.truth import Truth
from autotimm.sharding.cli import main
from autotimm.streaming.store import open_source
from autotimm.structures import InputError

SOUND = ("segmentation", "area", "bbox")


def parts(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """The file as two, the second one with ids of its own, which clash with those of the first."""
    first, second = copy.deepcopy(truth), copy.deepcopy(truth)
    ids = [one["id"] for one in truth["images"]]
    for part, kept in ((first, ids[:2]), (second, ids[2:])):
        part["images"] = [one for one in part["images"] if one["id"] in kept]
        part["annotations"] = [one for one in part["annotations"] if one["image_id"] in kept]
    (other,) = second["images"]
    other["id"] = ids[0]
    swapped = {3: 7, 7: 3}
    for number, one in enumerate(second["annotations"], 1):
        one |= {"id": number, "image_id": ids[0], "category_id": swapped[one["category_id"]]}
    second["categories"] = [{"id": swapped[c["id"]], "name": c["name"]} for c in CATEGORIES]
    return [first, second]


def sound(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Truths that pycocotools takes as they are."""
    truth, results = odd_file(seed)
    truth["annotations"] = [
        one
        for one in truth["annotations"]
        if all(one.get(key) for key in SOUND) and isinstance(one["segmentation"], list)
    ]
    return truth, results


@pytest.mark.filterwarnings("ignore")
def test_joined_files_are_measured_as_the_whole_is(tmp_path: Path) -> None:
    truth, results = sound(31)
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, part in zip(files, parts(truth), strict=True):
        file.write_text(json.dumps(part))
    (tmp_path / "results.json").write_text(json.dumps(results))
    words = ["--results", tmp_path / "results.json", "--out", tmp_path / "out"]
    words += [word for file in files for word in ("--annotations", file)]
    arguments = evaluate.parser().parse_args([str(word) for word in words])
    with pytest.raises(InputError, match=r"results\.json: its ids may mean .* put images\.json"):
        evaluate.run(arguments)
    (tmp_path / "images.json").write_text(json.dumps({**truth, "annotations": []}))
    assert evaluate.run(arguments) == 0
    got = json.loads((tmp_path / "out/metrics.json").read_text())
    found = [
        one | {"id": k, "iscrowd": 0, "area": one["bbox"][2] * one["bbox"][3]}
        for k, one in enumerate(copy.deepcopy(results), 1)
    ]
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        whole = copy.deepcopy(truth)
        wanted = official(coco_of(whole), coco_of({**whole, "annotations": found}), kind)
        assert {key: got[name][key] for key in wanted} == pytest.approx(wanted, abs=1e-6)
        assert wanted["AP"] > 0.1
    assert any("numbered anew" in line for line in got["remarks"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", [False, True])
def test_joined_files_are_what_their_shards_are(tmp_path: Path, text: bool) -> None:
    """Also where both files describe an image, and where their ids are text."""
    truth, _ = odd_file(32)
    both = parts(truth)
    shared = copy.deepcopy(both[0]["images"][0])
    both[1]["images"].append(shared | {"id": 99})
    box = {"bbox": [1, 2, 9, 8], "area": 72, "iscrowd": 0}
    outline = [[1, 2, 10, 2, 10, 10, 1, 10]]
    own = {"id": 500, "image_id": 99, "category_id": 3, "segmentation": outline}
    both[1]["annotations"].append(own | box)
    if text:
        for part in both:
            for one in (*part["images"], *part["categories"]):
                one["id"] = f"t{one['id']}"
            for one in part["annotations"]:
                one |= {key: f"t{one[key]}" for key in ("image_id", "category_id")}
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    written(tmp_path / "coco", truth)
    words: list[Any] = []
    for file, part in zip(files, both, strict=True):
        file.write_text(json.dumps(part))
        words += ["--annotations", file, "--images", tmp_path / "coco/val"]
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in (*words, "--splits", "val,val", tmp_path / "shards")])
    assert ended.value.code == 0
    of_shards = Truth(open_source(tmp_path / "shards", "val")).truth
    of_files = truth_files.of_files(files)
    assert of_files.images == of_shards.images
    assert of_files.categories == of_shards.categories
    assert of_files.annotations == of_shards.annotations
    assert of_files.numbers == of_shards.numbers
    kind = "image is in several annotation files (annotations joined)"
    assert of_files.problems.counts[kind] == of_shards.problems.counts[kind] == 1


def test_sizes_in_quotes_and_coordinates_beyond_any_float() -> None:
    mask = {"size": ["48.0", "64"], "counts": "0"}
    truth = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": CATEGORIES,
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "segmentation": mask},
            {"id": 2, "image_id": 2, "category_id": 3, "segmentation": [[10**400, 5, 7.5, 9]]},
        ],
    }
    images = truth_files.of_source(truth).images
    assert [(one["height"], one["width"]) for one in images] == [(48, 64), (9, 8)]


@pytest.mark.parametrize("key", ["score", "bbox"])
def test_results_of_numbers_that_no_float_holds_are_refused(key: str) -> None:
    truth = truth_files.of_source(
        {"images": [{"id": 1}], "annotations": [], "categories": CATEGORIES}
    )
    result = {"image_id": 1, "category_id": 3, "score": 0.5, "bbox": [1, 2, 3, 4]}
    large = 10**400 if key == "score" else [0, 0, 10**400, 1]
    with pytest.raises(InputError, match=rf"result 1: {key} is "):
        prepared(truth, [result | {key: large}], "bbox")


def test_areas_are_finite() -> None:
    truth = truth_files.of_source(
        {"images": [{"id": 1}], "annotations": [], "categories": CATEGORIES}
    )
    result = {"image_id": 1, "category_id": 3, "score": 0.5, "bbox": [0, 0, 10**200, 1e200]}
    assert prepared(truth, [result], "bbox")[1]["annotations"][0]["area"] == OF_NO_SIZE
