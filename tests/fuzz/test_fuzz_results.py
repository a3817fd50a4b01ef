"""What ``evaluate`` reads: results, ``images.json`` beside them, ground truth."""

from __future__ import annotations

import json
import math
from typing import Any

from documents import mutated, nested, texts
from hypothesis import strategies as st
from properties import fuzzed, outcome
from samples import CATEGORIES, HEIGHT, NAMES, WIDTH, coco, folder, results

from autotimm.evaluation import coco_input, matching
from autotimm.evaluation.ground_truth import GroundTruth
from autotimm.evaluation.truth_files import of_files, of_source

SIZE = {"width": WIDTH, "height": HEIGHT}
LISTED = [{"id": n, "file_name": name, **SIZE} for n, name in enumerate(NAMES, 1)]
TRUTH = of_source(
    {
        "images": LISTED,
        "categories": CATEGORIES,
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5], "area": 25}
        ],
    }
)
iou_types = st.sampled_from(("bbox", "segm"))


def check_truth(truth: GroundTruth) -> None:
    """What evaluation is given is finite, and has every image's size."""
    for one in truth.annotations:
        assert all(math.isfinite(v) for v in (*one["bbox"], one["area"]))
        assert one["segmentation"]["size"] in [[i["height"], i["width"]] for i in truth.images]
    assert all(type(one["id"]) is int and one["width"] > 0 < one["height"] for one in truth.images)
    json.dumps(truth.frame(), allow_nan=False)


@fuzzed(texts(mutated(coco())), mutated(results(), 2), examples=40)
def test_truth_file(data: bytes, found: Any) -> None:
    file = folder("truth") / "truth.json"
    file.write_bytes(data)
    entries = nested(found)
    sizes = coco_input.sizes_of(entries) if isinstance(entries, list) else {}
    truth = outcome(lambda: of_source(file, sizes), naming=str(file))
    if truth is not None:
        check_truth(truth)


@fuzzed(mutated(coco()), examples=40)
def test_truth_content(document: Any) -> None:
    naming = document if isinstance(document, str) else "ground truth"  # a text names a file
    truth = outcome(lambda: of_source(nested(document)), naming=naming)
    if truth is not None:
        check_truth(truth)


@fuzzed(st.lists(texts(mutated(coco(), 2), plain=True), min_size=2, max_size=3), examples=20)
def test_joined_truths(parts: list[bytes]) -> None:
    files = [folder("truths") / f"{number}.json" for number in range(len(parts))]
    for file, data in zip(files, parts, strict=True):
        file.write_bytes(data)
    truth = outcome(lambda: of_files(files), naming=str(files[0].parent))
    if truth is not None:
        check_truth(truth)


@fuzzed(texts(mutated(results())), iou_types, examples=60)
def test_results_file(data: bytes, iou_type: Any) -> None:
    file = folder("results") / "results.json"
    file.write_bytes(data)

    def read() -> Any:
        entries = coco_input.entries_of(file)
        return coco_input.prepared(TRUTH, entries, iou_type, str(file))

    found = outcome(read, naming=str(file))
    for one in found[1]["annotations"] if found else ():
        assert all(math.isfinite(v) for v in (*one["bbox"], one["area"], one["score"]))


images_files = st.fixed_dictionaries(
    {"images": st.just(LISTED), "categories": st.just(CATEGORIES), "annotations": st.just([])}
)


@fuzzed(texts(mutated(images_files)), mutated(results(), 1), examples=40)
def test_images_file(data: bytes, found: Any) -> None:
    file = folder("matched") / "results.json"
    file.with_name(matching.IMAGES).write_bytes(data)
    entries = nested(found)
    if isinstance(entries, list):
        outcome(lambda: matching.fitted(entries, file, TRUTH), naming=str(file.parent))
