"""Every truth of a file counts: a folder, its shards, the file alone and the metrics of training
give what pycocotools gives for the file."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folder import picture
from official import coco_of, official
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from autotimm.coco import index, layouts
from autotimm.data import collate
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.evaluation import coco_eval, report
from autotimm.evaluation.metrics import BACKENDS, MetricConfig, StageMetrics
from autotimm.evaluation.truth import Truth
from autotimm.sharding.cli import shard
from autotimm.streaming.store import open_source

HEIGHT, WIDTH = 48, 64
CATEGORIES = [{"id": 3, "name": "disc"}, {"id": 7, "name": "star"}]
KINDS = (
    *("sound", "box alone", "no segmentation", "no pixel", "no area", "no area and no mask"),
    *("area 0", "negative area", "huge area", "wrong area", "ignored", "crowd", "crowd alone"),
    *("flat box", "box elsewhere", "runs of another size", "compressed runs"),
)


def rectangle(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def runs(x: int, y: int, w: int, h: int) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle = coco_mask.encode(mask)
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def instance(kind: str, place: tuple[int, int, int, int]) -> dict[str, Any]:
    x, y, w, h = place
    one = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": rectangle(*place)}
    changes: dict[str, dict[str, Any]] = {
        "box alone": {"segmentation": []},
        "no segmentation": {"segmentation": ...},
        "no pixel": {"segmentation": rectangle(x, y, w, 0.4), "bbox": [x, y, w, 0.4]},
        "no area": {"area": ...},
        "no area and no mask": {"area": ..., "segmentation": []},
        "area 0": {"area": 0},
        "negative area": {"area": -2.5},
        "huge area": {"area": 2e10},
        "wrong area": {"area": 1500.5},
        "ignored": {"ignore": 1},
        "crowd": {"iscrowd": 1, "segmentation": runs(*place)},
        "crowd alone": {"iscrowd": 1, "segmentation": []},
        "flat box": {"bbox": [x, y, w, 0]},
        "box elsewhere": {"bbox": [x, HEIGHT - y - h, w, h]},
        "runs of another size": {"segmentation": {"size": [9, 9], "counts": [81]}},
        "compressed runs": {"segmentation": runs(*place)},
    }
    return {k: v for k, v in (one | changes.get(kind, {})).items() if v is not ...}


def odd_file(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A file that mixes the kinds, and results that find most of its instances, not quite."""
    rng = np.random.default_rng(seed)
    images = [
        {"id": 5 * i + 2, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH}
        for i in range(3)
    ]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def find(image: int, category: int, place: tuple[int, int, int, int]) -> None:
        x, y, w, h = place
        score = round(float(rng.random()), 3)
        one = {"image_id": image, "category_id": category, "score": score}
        results.append(one | {"bbox": [x, y, w, h], "segmentation": runs(x, y, w, h)})

    for image in images:
        for kind in rng.choice(KINDS, 9):
            w, h = (int(side) for side in rng.integers(4, 40, 2))
            x, y = int(rng.integers(0, WIDTH - w)), int(rng.integers(0, HEIGHT - h))
            category = int(rng.choice([3, 7]))
            own = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category}
            annotations.append(own | instance(str(kind), (x, y, w, h)))
            for _ in range(int(rng.integers(0, 3))):
                narrower = (x, y, max(w - int(rng.integers(0, 4)), 2), h)
                find(image["id"], category if rng.random() < 0.9 else 3, narrower)
    for _ in range(10):
        find(int(rng.choice([2, 7, 12])), int(rng.choice([3, 7])), (3, 3, 20, 20))
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}, results


def expected(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """pycocotools' numbers, with what it would end at filled in: a missing area with the mask's or
    the box's, a missing mask with one of no pixel."""
    truth = copy.deepcopy(truth)
    for one in truth["annotations"]:
        mask = one.get("segmentation")
        if not mask or (isinstance(mask, dict) and mask["size"] != [HEIGHT, WIDTH]):
            mask = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
            one["segmentation"] = coco_mask.frPyObjects(mask, HEIGHT, WIDTH)
        if "area" not in one:
            polygons = isinstance(mask, list)
            inside = coco_mask.frPyObjects(mask, HEIGHT, WIDTH)[0] if polygons else None
            box = one["bbox"][2] * one["bbox"][3]
            one["area"] = float(coco_mask.area(inside)) if polygons else box
    found = [
        one | {"id": k, "iscrowd": 0, "area": one["bbox"][2] * one["bbox"][3]}
        for k, one in enumerate(copy.deepcopy(results), 1)
    ]
    return official(coco_of(truth), coco_of({**truth, "annotations": found}), kind)


def written(folder: Path, truth: dict[str, Any]) -> Path:
    (folder / "annotations").mkdir(parents=True)
    (folder / "val").mkdir()
    (folder / "annotations/instances_val.json").write_text(json.dumps(truth))
    for image in truth["images"]:
        (folder / "val" / image["file_name"]).write_bytes(picture(WIDTH, HEIGHT))
    return folder


@pytest.mark.parametrize("seed", range(4))
def test_folder_shards_and_file_give_what_pycocotools_gives(tmp_path: Path, seed: int) -> None:
    truth, results = odd_file(seed)
    coco = written(tmp_path / "coco", truth)
    shard(coco, tmp_path / "shards", workers=1)
    sources: list[Any] = [Truth(open_source(coco, "val")).truth]
    sources += [Truth(open_source(tmp_path / "shards", "val")).truth]
    sources += [coco / "annotations/instances_val.json", truth]
    for kind in ("bbox", "segm"):
        wanted = expected(truth, results, kind)
        for source in sources:
            got = coco_eval.evaluate(source, results, kind)  # type: ignore[arg-type]
            assert got == pytest.approx(wanted, abs=1e-6), (kind, source)


@pytest.mark.slow
def test_two_hundred_files_give_what_pycocotools_gives(tmp_path: Path) -> None:
    file = tmp_path / "truth.json"
    for seed in range(200):
        truth, results = odd_file(100 + seed)
        file.write_text(json.dumps(truth))
        for kind in ("bbox", "segm"):
            got = coco_eval.evaluate(file, results, kind)  # type: ignore[arg-type]
            assert got == pytest.approx(expected(truth, results, kind), abs=1e-6), (seed, kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["balloon", "coco_mini", "fruits_nuts", "microscopy_flakes"])
def test_real_files_give_what_pycocotools_gives(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    [split, *_] = layouts.find_splits(shared_data / name).values()
    truth = json.loads(split.annotation_file.read_text())
    rng = np.random.default_rng(5)
    results = []
    for one in truth["annotations"]:
        x, y, w, h = one["bbox"]
        moved = [x + rng.normal(0, 0.05 * w), y + rng.normal(0, 0.05 * h), w, h]
        entry = {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": moved}
        results.append(entry | {"score": round(float(rng.random()), 4)})
    found = [
        one | {"id": k, "iscrowd": 0, "area": one["bbox"][2] * one["bbox"][3]}
        for k, one in enumerate(copy.deepcopy(results), 1)
    ]
    given = copy.deepcopy(truth)
    for k, one in enumerate(given["annotations"], 1):
        one["id"] = k  # pycocotools takes a match with annotation 0 for none
    wanted = official(coco_of(given), coco_of({**given, "annotations": found}), "bbox")
    shard(shared_data / name, tmp_path / "shards", workers=1)
    sources: list[Any] = [split.annotation_file]
    sources += [
        Truth(open_source(data, split.name)).truth
        for data in (shared_data / name, tmp_path / "shards")
    ]
    for source in sources:
        got = coco_eval.evaluate(source, results, "bbox")
        assert got == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("name", ["balloon", "coco_mini", "fruits_nuts", "microscopy_flakes"])
def test_masks_of_real_files_give_what_pycocotools_gives(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    """Some images of each, their masks moved a little, every fifth truth without its mask."""
    [split, *_] = layouts.find_splits(shared_data / name).values()
    truth = json.loads(split.annotation_file.read_text())
    seldom = {one["image_id"] for one in truth["annotations"] if one.get("iscrowd")}
    chosen = sorted(truth["images"], key=lambda one: one["id"] not in seldom)[:8]
    ids = {one["id"] for one in chosen}
    kept = [one for one in truth["annotations"] if one["image_id"] in ids]
    truth = {"images": chosen, "categories": truth["categories"], "annotations": kept}
    whole, rng = coco_of(copy.deepcopy(truth)), np.random.default_rng(7)
    results = []
    for one in whole.dataset["annotations"]:
        mask = np.roll(whole.annToMask(one), rng.integers(-3, 4, 2), (0, 1))
        rle: Any = coco_mask.encode(np.asfortranarray(mask))
        found = {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}}
        own = {key: one[key] for key in ("image_id", "category_id")}
        box, score = coco_mask.toBbox(rle).tolist(), round(float(rng.random()), 4)
        results.append({**own, **found, "bbox": box, "score": score})
    given = copy.deepcopy(truth)
    sizes = {one["id"]: [one["height"], one["width"]] for one in chosen}
    for k, (one, plain) in enumerate(zip(given["annotations"], kept, strict=True), 1):
        one["id"] = k  # pycocotools takes a match with annotation 0 for none
        if k % 5 == 0:
            plain["segmentation"] = []
            size = sizes[one["image_id"]]
            empty = {"size": size, "counts": [size[0] * size[1]]}
            one["segmentation"] = coco_mask.frPyObjects(empty, *size)
    detections = [
        one | {"id": k, "iscrowd": 0, "area": float(coco_mask.area(one["segmentation"]))}
        for k, one in enumerate(copy.deepcopy(results), 1)
    ]
    wanted = official(coco_of(given), coco_of({**given, "annotations": detections}), "segm")
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations/instances_val.json"
    file.write_text(json.dumps(truth))
    (tmp_path / "val").symlink_to(split.image_folder.resolve(), target_is_directory=True)
    assert 0.05 < wanted["AP"] < 0.95
    for source in (file, Truth(open_source(tmp_path, "val")).truth):
        got = coco_eval.evaluate(source, results, "segm")
        assert got == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_metrics_of_training_give_the_same(tmp_path: Path, backend: str) -> None:
    truth, results = odd_file(11)
    coco = written(tmp_path / "coco", truth)
    records = index.load(coco / "annotations/instances_val.json", coco / "val")
    labels = {3: 0, 7: 1}
    metrics = StageMetrics(
        "val", [MetricConfig("ap", backend, params={"iou_type": ["bbox", "segm"]})]
    )
    for i in range(len(records)):
        record = records.record(i)
        target: Any = {
            key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for key, value in collate.target(record, labels).items()
        }
        own = [one for one in results if one["image_id"] == record["image_id"]]
        own.sort(key=lambda one: -one["score"])
        boxes = torch.tensor([one["bbox"] for one in own], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        found: Any = {
            "boxes": boxes,
            "labels": torch.tensor([labels[one["category_id"]] for one in own]),
            "scores": torch.tensor([one["score"] for one in own]),
            "rles": [one["segmentation"] for one in own],
        }
        metrics.update([found], [target], [record["image_id"]])
    values = {name: float(value) for name, value in metrics.compute().items()}
    for kind, head in (("segm", "val/ap"), ("bbox", "val/ap_bbox")):
        wanted = expected(truth, results, kind)
        for name, tail in (
            ("AP", ""),
            ("AP50", "_50"),
            ("AP_small", "_small"),
            ("AR100", "_mar_100"),
        ):
            assert values[head + tail] == pytest.approx(wanted[name], abs=1e-6), (kind, name)


@pytest.mark.parametrize("limit", [20, 100, 150])
def test_other_limits_are_those_of_pycocotools(limit: int) -> None:
    truth, _ = odd_file(0)
    places = [(2 * (k % 26), 2 * (k // 26), 3, 3) for k in range(160)]
    own = {"image_id": 2, "category_id": 3}
    truth["annotations"] = [
        own | {"id": k} | instance("sound", one) for k, one in enumerate(places, 1)
    ]
    results = [
        own | {"bbox": list(one), "segmentation": runs(*one), "score": 1 - k / 1000}
        for k, one in enumerate(places)
    ]
    found = [one | {"id": k, "area": 9, "iscrowd": 0} for k, one in enumerate(results, 1)]
    given = copy.deepcopy(truth)  # which COCOeval changes
    run = COCOeval(coco_of(given), coco_of({**given, "annotations": found}), "segm")
    run.params.maxDets = [1, 10, limit]
    run.evaluate()
    run.accumulate()
    run.summarize()
    precision = run.eval["precision"][..., 0, 2]
    got = coco_eval.evaluate(truth, results, "segm", limit)
    assert got["AP"] == pytest.approx(precision[precision > -1].mean(), abs=1e-9)
    names = ["AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", f"AR{limit}"]
    assert [got[name] for name in names] == pytest.approx(run.stats[1:9].tolist(), abs=1e-9)
    told = report.measure(truth, results, max_detections=limit).remarks
    assert any(f"more than {limit} truths" in line for line in told) == (limit < 160)


def test_shards_of_an_older_version_say_what_they_lack(tmp_path: Path) -> None:
    truth, _ = odd_file(3)
    coco = written(tmp_path / "coco", truth)
    shard(coco, tmp_path / "shards", workers=1)
    assert open_source(tmp_path / "shards", "val").lacking == ""
    manifest = tmp_path / "shards/manifest.json"
    content = json.loads(manifest.read_text())
    assert content["version"] >= 3
    del content["sha256"]
    manifest.write_text(json.dumps(content | {"version": 2}))
    lost = sum(
        count
        for kind, count in content["splits"]["val"]["problems"].items()
        if kind.endswith("(instance left out)")
    )
    assert lost
    told = open_source(tmp_path / "shards", "val").lacking
    assert f"lack {lost} instances without a mask" in told
    content["splits"]["val"]["problems"] = {}
    manifest.write_text(json.dumps(content | {"version": 2}))
    assert open_source(tmp_path / "shards", "val").lacking == ""


def test_what_training_learns_from_is_told_from_what_evaluation_counts(tmp_path: Path) -> None:
    image = {"id": 2, "file_name": "0.jpg", "height": HEIGHT, "width": WIDTH}
    kinds = ("sound", "box alone", "area 0", "flat box")
    annotations = [
        {"id": k, "image_id": 2, "category_id": 3} | instance(kind, (5, 5, 10, 10))
        for k, kind in enumerate(kinds, 1)
    ]
    truth = {"images": [image], "annotations": annotations, "categories": CATEGORIES}
    coco = written(tmp_path / "coco", truth)
    record = index.load(coco / "annotations/instances_val.json", coco / "val").record(0)
    sound, no_area, flat = record["annotations"]
    assert "given_area" not in sound and "given_bbox" not in sound
    assert (no_area["area"], no_area["given_area"]) == (100, 0)
    assert (flat["bbox"], flat["given_bbox"]) == ([5, 5, 10, 10], [5, 5, 10, 0])
    [alone] = record["unmasked"]
    assert alone == {"id": 2, "category_id": 3, "bbox": [5, 5, 10, 10], "area": 100, "iscrowd": 0}
    [line] = report.measure(truth, []).remarks
    assert line.startswith("truths without a mask that covers a pixel: 1; box AP counts them")


# LVISEval of the lvis package 0.5.3 with lvis_file(): of each kind, at most so many an image.
LVIS_NUMBERS = {
    ("bbox", 300): [
        *(0.112623762, 0.125, 0.125, 0.035166195, 0.9, -1.0, 0.141089109),
        *(-1.0, 0.084158416, 0.466666667, 0.25, 0.9, -1.0),
    ],
    ("segm", 300): [
        *(0.253267327, 0.306353135, 0.306353135, 0.166981377, 0.9, -1.0, 0.299108911),
        *(-1.0, 0.207425743, 0.733333333, 0.675, 0.9, -1.0),
    ],
    ("bbox", 10): [
        *(0.075742574, 0.084158416, 0.084158416, 0.0, 0.9, -1.0, 0.067326733),
        *(-1.0, 0.084158416, 0.3, 0.0, 0.9, -1.0),
    ],
    ("segm", 10): [
        *(0.200792079, 0.243234323, 0.243234323, 0.101245875, 0.9, -1.0, 0.194158416),
        *(-1.0, 0.207425743, 0.566666667, 0.425, 0.9, -1.0),
    ],
}


def lvis_file() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Categories that were looked for and not found, one not exhaustive, one flagged truth."""
    truth, results = odd_file(21)
    for number, image in enumerate(truth["images"]):
        own = {a["category_id"] for a in truth["annotations"] if a["image_id"] == image["id"]}
        image["neg_category_ids"] = sorted({3, 7, 9} - own)[: number + 1]
        image["not_exhaustive_category_ids"] = [3] if number == 1 else []
    truth["categories"] = [
        {"id": id_, "name": str(id_), "frequency": letter}
        for id_, letter in ((3, "f"), (7, "r"), (9, "c"))
    ]
    kept = [a for a in truth["annotations"] if "area" in a and a.get("segmentation")]
    truth["annotations"] = [a for a in kept if isinstance(a["segmentation"], list)]
    return truth, results


@pytest.mark.parametrize("limit", [300, 10])
def test_files_of_lvis_are_measured_by_its_rule(limit: int, tmp_path: Path) -> None:
    truth, results = lvis_file()
    coco = written(tmp_path / "coco", truth)
    shard(coco, tmp_path / "shards", workers=1)
    for data in (coco, tmp_path / "shards"):
        of_data = Truth(open_source(data, "val")).truth
        assert of_data.federated
        for kind in ("bbox", "segm"):
            got = coco_eval.evaluate(of_data, results, kind, limit)  # type: ignore[arg-type]
            names = [f"AR{limit}" if name == "AR300" else name for name in coco_eval.LVIS_STATS]
            assert list(got) == names
            assert [round(v, 9) for v in got.values()] == LVIS_NUMBERS[kind, limit]
    assert any("LVIS' rule" in line for line in report.measure(truth, results).remarks)


def test_training_on_a_file_of_lvis_says_that_it_goes_by_another_rule(tmp_path: Path) -> None:
    truth, _ = lvis_file()
    coco = written(tmp_path / "coco", truth)
    module = InstanceSegmentationDataModule(
        coco, train_split="val", val_split="val", image_size=64, num_workers=0, batch_size=1
    )
    with pytest.warns(UserWarning, match=r"autotimm evaluate measures .* LVIS' rule") as told:
        module.setup("fit")
        module.val_dataloader()
        module.val_dataloader()
    assert sum("LVIS" in str(one.message) for one in told) == 1


@pytest.mark.filterwarnings("ignore:.*not a whole number")
@pytest.mark.parametrize("ids", [{3: "f", 7: "r", 9: "c"}, {3: -5, 7: 0, 9: 2**70}])
def test_lists_of_lvis_name_categories_as_annotations_do(tmp_path: Path, ids: Any) -> None:
    """Text ids, ids below 0 and ids of more than 64 bits."""
    truth, results = lvis_file()
    for one in truth["categories"]:
        one["id"] = ids[one["id"]]
    for one in (*truth["annotations"], *results):
        one["category_id"] = ids[one["category_id"]]
    for one in (*truth["images"], *truth["annotations"], *results):
        key = "id" if "file_name" in one else "image_id"
        one[key] -= 40
    for one in truth["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            one[key] = [*map(ids.get, one[key])]
    truth["images"][0]["neg_category_ids"] += ["nobody"]
    coco = written(tmp_path / "coco", truth)
    shard(coco, tmp_path / "shards", workers=1)
    sources = [Truth(open_source(data, "val")).truth for data in (coco, tmp_path / "shards")]
    for source in (*sources, coco / "annotations/instances_val.json", truth):
        got = coco_eval.evaluate(source, results, "segm")  # type: ignore[arg-type]
        assert [round(v, 9) for v in got.values()] == LVIS_NUMBERS["segm", 300]
    remarks = report.measure(truth, results).remarks
    assert any("neg_category_ids has an id that no category" in line for line in remarks)
