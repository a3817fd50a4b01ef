"""Stage metrics against pycocotools: real ground truth, disturbed by hand, on one and two ranks."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import forked  # noqa: F401  which sets up the server of processes
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchvision.ops import box_iou

from autotimm.coco import masks
from autotimm.evaluation.coco_eval import evaluate, to_results
from autotimm.evaluation.metrics import BACKENDS, METRIC_CLASSES, MetricConfig, StageMetrics
from autotimm.structures import InputError

SUFFIXES = ["", "_50", "_75", "_small", "_medium", "_large"]
SUFFIXES += ["_mar_1", "_mar_10", "_mar_100", "_mar_small", "_mar_medium", "_mar_large"]
HEIGHT, WIDTH = 40, 60


def pack(boxes: Any, labels: Any, rles: list[Any], **others: Any) -> dict[str, Any]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "rles": rles,
        **{key: torch.tensor(value) for key, value in others.items()},
    }


def target(boxes: Any, labels: Any, rles: list[Any], crowd: Any, area: Any) -> dict[str, Any]:
    made = pack(boxes, labels, rles)
    made["iscrowd"] = torch.tensor(crowd, dtype=torch.int64)
    made["area"] = torch.tensor(area, dtype=torch.float32)
    return made


def found(boxes: Any, labels: Any, rles: list[Any], scores: Any) -> dict[str, Any]:
    made = pack(boxes, labels, rles)
    made["scores"] = torch.tensor(scores, dtype=torch.float32)
    return made


def disturbed(
    truth: dict[str, Any], seed: int
) -> tuple[list[int], list[int], list[Any], list[Any]]:
    """Category ids, image ids, detections and targets.

    Each instance is moved a little; some are lost, some mistaken, some invented. Every eighth image
    has no detections; images without ground truth have false positives.
    """
    rng = np.random.default_rng(seed)
    category_ids = sorted(one["id"] for one in truth["categories"])
    image_ids, detections, targets = [], [], []
    for number, image in enumerate(truth["images"]):
        height, width = image["height"], image["width"]
        own = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
        rles = [masks.to_rle(one["segmentation"], height, width) for one in own]
        labels = [category_ids.index(one["category_id"]) for one in own]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in own)]
        crowd = [one["iscrowd"] for one in own]
        targets.append(target(boxes, labels, rles, crowd, [one["area"] for one in own]))

        got: list[Any] = []
        for rle, label in zip(rles, labels, strict=True):
            if rng.random() < 0.2:
                continue
            shift = rng.normal(0, 0.01 * width, 2).astype(np.float32)
            moved = cv2.warpAffine(
                masks.decode(rle), np.float32([[1, 0, shift[0]], [0, 1, shift[1]]]), (width, height)
            )
            if rng.random() < 0.3:
                moved = cv2.dilate(moved, np.ones((5, 5), np.uint8))
            got.append((moved, label if rng.random() < 0.9 else int(rng.integers(80))))
        for _ in range(int(rng.integers(0, 3))):
            blob = np.zeros((height, width), np.uint8)
            centre = (int(rng.integers(width)), int(rng.integers(height)))
            cv2.circle(blob, centre, int(rng.integers(5, 60)), 1, -1)
            got.append((blob, int(rng.choice(labels or [0]))))
        got = [] if number % 8 == 7 else [one for one in got if one[0].any()]
        scores = np.sort(rng.random(len(got)))[::-1].astype(np.float32).tolist()
        found_rles = [masks.encode(mask) for mask, _ in got]
        boxes = [masks.box(rle) for rle in found_rles]
        detections.append(found(boxes, [label for _, label in got], found_rles, scores))
        image_ids.append(image["id"])
    return category_ids, image_ids, detections, targets


def expected(truth: dict[str, Any], disturbance: Any, iou_type: Any) -> list[float]:
    category_ids, image_ids, detections, _ = disturbance
    results = [
        one
        for image_id, image in zip(image_ids, detections, strict=True)
        for one in to_results(image, image_id, category_ids)
    ]
    return list(evaluate(truth, results, iou_type).values())


def computed(metrics: StageMetrics, name: str) -> list[float]:
    return named(metrics.compute(), name)


def named(values: dict[str, Any], name: str) -> list[float]:
    assert all(value.shape == () for value in values.values())
    return [float(values[f"{name}{suffix}"]) for suffix in SUFFIXES]


@pytest.fixture(scope="module")
def truth(shared_data: Path) -> dict[str, Any]:
    file = shared_data / "coco_mini/annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    assert any(one["iscrowd"] for one in content["annotations"])
    with_instances = {one["image_id"] for one in content["annotations"]}
    content["images"].sort(key=lambda image: image["id"] in with_instances)
    content["annotations"] = [  # one image at least without ground truth
        one for one in content["annotations"] if one["image_id"] != content["images"][0]["id"]
    ]
    return content


@pytest.fixture(scope="module")
def disturbance(truth: dict[str, Any]) -> Any:
    return disturbed(truth, seed=3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_pycocotools(truth: dict[str, Any], disturbance: Any, backend: str) -> None:
    configs = [
        MetricConfig("mask", backend, params={"box_format": "xyxy", "iou_type": "segm"}),
        MetricConfig("box", backend, params={"box_format": "xyxy", "iou_type": "bbox"}),
        MetricConfig(
            "both", backend, params={"box_format": "cxcywh", "iou_type": ["bbox", "segm"]}
        ),
    ]
    metrics = StageMetrics("val", configs)
    for detections, targets in zip(*disturbance[2:], strict=True):
        metrics.update([detections], [targets])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = metrics.compute()
    segm, bbox = (expected(truth, disturbance, kind) for kind in ("segm", "bbox"))
    assert 0.1 < segm[0] < 0.7, "the disturbance should neither spoil everything nor nothing"
    for name, wanted in (("mask", segm), ("both", segm), ("box", bbox), ("both_bbox", bbox)):
        assert named(values, f"val/{name}") == pytest.approx(wanted, abs=1e-6), name
    assert not metrics.state_dict()

    metrics.reset()
    assert computed(metrics, "val/mask") == [-1] * 12


@pytest.mark.parametrize("backend", BACKENDS)
def test_published_results(shared_data: Path, backend: str) -> None:
    folder = shared_data / "metrics/val2014_100"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / "instances_val2014_fakesegm100_results.json").read_text())
    category_ids, _, _, targets = disturbed(truth, seed=0)
    metrics = StageMetrics("test", [MetricConfig("mask", backend, params={"iou_type": "segm"})])
    for image, one in zip(truth["images"], targets, strict=True):
        own = [entry for entry in results if entry["image_id"] == image["id"]]
        rles = [entry["segmentation"] for entry in own]
        labels = [category_ids.index(entry["category_id"]) for entry in own]
        scores = [entry["score"] for entry in own]
        metrics.update([found([masks.box(rle) for rle in rles], labels, rles, scores)], [one])
    assert [round(value, 3) for value in computed(metrics, "test/mask")][:3] == [
        0.320,
        0.562,
        0.299,
    ]


def test_states_are_what_torchmetrics_own_update_leaves(disturbance: Any) -> None:
    """Dense masks through the public ``update``, on the images where torchmetrics loses nothing."""
    config = MetricConfig("both", params={"iou_type": ["bbox", "segm"]})
    metrics, reference = StageMetrics("val", [config]), config.build()
    for detections, one in list(zip(*disturbance[2:], strict=True))[10:30]:
        metrics.update([detections], [one])
        dense = []
        for item in (detections, one):
            stack = [torch.from_numpy(masks.decode(rle)).bool() for rle in item["rles"]]
            dense.append(
                item | {"masks": torch.stack(stack) if stack else torch.zeros(0, 1, 1) > 0}
            )
        reference.update([dense[0]], [dense[1]])
    theirs, ours = reference.compute(), metrics.compute()
    assert ours["val/both"] == theirs["segm_map"]
    assert ours["val/both_bbox_75"] == theirs["bbox_map_75"]
    assert ours["val/both_mar_small"] == theirs["segm_mar_small"]
    assert len(ours) == len([key for key in theirs if "map" in key or "mar" in key]) - 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_false_positives_on_an_image_without_ground_truth_count(backend: str) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:25, 5:25] = 1
    rle, box = masks.encode(mask), [5, 5, 25, 25]
    full, empty = target([box], [0], [rle], [0], [400]), target([], [], [], [], [])
    metrics = StageMetrics("val", [MetricConfig("m", backend, params={"iou_type": "segm"})])
    metrics.update(
        [found([box], [0], [rle], [0.5]), found([box], [0], [rle], [0.9])], [full, empty]
    )
    assert metrics.compute()["val/m"] == pytest.approx(0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pass_without_detections_is_zero(backend: str) -> None:
    rle = masks.encode(np.ones((HEIGHT, WIDTH), np.uint8))
    metrics = StageMetrics("val", [MetricConfig("m", backend, params={"iou_type": "segm"})])
    box = [0, 0, WIDTH, HEIGHT]
    metrics.update([found([], [], [], [])], [target([box], [1], [rle], [0], [2400])])
    assert metrics.compute()["val/m"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_class_metrics_are_named_by_label(
    truth: dict[str, Any], disturbance: Any, backend: str
) -> None:
    params = {"iou_type": "segm", "class_metrics": True}
    metrics = StageMetrics("val", [MetricConfig("m", backend, params=params)])
    metrics.update(*disturbance[2:])
    values = metrics.compute()
    assert metrics.names() == {key for key in values if "_class_" not in key}
    category_ids = disturbance[0]
    for label in (0, category_ids.index(44)):
        alone = truth | {
            "categories": [one for one in truth["categories"] if one["id"] == category_ids[label]],
            "annotations": [
                one for one in truth["annotations"] if one["category_id"] == category_ids[label]
            ],
        }
        results = [
            one
            for image_id, image in zip(disturbance[1], disturbance[2], strict=True)
            for one in to_results(image, image_id, category_ids)
            if one["category_id"] == category_ids[label]
        ]
        stats = evaluate(alone, results, "segm")
        assert values[f"val/m_class_{label}"] == pytest.approx(stats["AP"])
        assert values[f"val/m_mar_100_class_{label}"] == pytest.approx(stats["AR100"])

    # Names in their place, as far as loggers take them and they differ.
    names = [str(k) for k in range(len(category_ids))]
    names[0], names[1], names[-1] = "a/b: \u00e9", "twin?", "twin!"
    named = metrics.compute(names)
    assert named["val/m_class_a_b_ \u00e9"] == values["val/m_class_0"]
    assert named["val/m_mar_100_class_a_b_ \u00e9"] == values["val/m_mar_100_class_0"]
    assert {key for key in named if "twin" in key} == set()
    assert len(named) == len(values)

    # A metric keeps the name that it was given, whatever that looks like.
    alike = StageMetrics("val", [MetricConfig("per_class_0", backend, params=params)])
    alike.update(*disturbance[2:])
    assert {"val/per_class_0", "val/per_class_0_class_a_b_ \u00e9"} <= set(alike.compute(names))

    one_class = StageMetrics("val", [MetricConfig("m", backend, params=params)])
    rle = masks.encode(np.ones((HEIGHT, WIDTH), np.uint8))
    box = [0, 0, WIDTH, HEIGHT]
    one_class.update([found([box], [5], [rle], [1])], [target([box], [5], [rle], [0], [2400])])
    assert one_class.compute()["val/m_class_5"] == 1
    empty = StageMetrics("val", [MetricConfig("m", backend, params=params)])
    assert [key for key in empty.compute() if "class" in key] == []


@pytest.mark.parametrize("box_format", ["xyxy", "xywh", "cxcywh"])
def test_iou_is_that_of_torchvision_in_every_box_format(box_format: str) -> None:
    params = {"box_format": box_format, "class_metrics": True}
    configs = [MetricConfig("iou", metric_class="IntersectionOverUnion", params=params)]
    metrics = StageMetrics("val", configs)
    assert metrics.compute() == {"val/iou": 0}
    boxes, others = [[0, 0, 10, 10], [20, 5, 30, 30]], [[1, 0, 10, 12], [22, 5, 30, 30]]
    metrics.update(
        [
            found(boxes, [0, 1], [], [0.5, 0.4]),
            found([], [], [], []),
            found(boxes, [0, 1], [], [1, 1]),
        ],
        [
            target([*others, [0, 0, 60, 40]], [0, 1, 0], [], [0, 0, 1], [1, 1, 1]),
            target(others, [0, 1], [], [0, 0], [1, 1]),
            target([], [], [], [], []),
        ],
    )
    pairs = box_iou(torch.tensor(boxes).float(), torch.tensor(others).float()).diag()
    values = metrics.compute()
    assert values["val/iou"] == pytest.approx(float(pairs.mean()))
    assert values["val/iou_class_1"] == pytest.approx(float(pairs[1]))


@pytest.mark.parametrize("metric_class", METRIC_CLASSES)
def test_every_metric_class_computes(metric_class: str) -> None:
    metrics = StageMetrics("val", [MetricConfig("m", metric_class=metric_class)])
    box = [3, 4, 10, 12]
    metrics.update([found([box], [0], [], [1])], [target([box], [0], [], [0], [56])])
    values = metrics.compute()
    assert values["val/m"] == pytest.approx(1)
    assert metrics.names() == {*values}


def test_stages_choose_their_metrics() -> None:
    configs = [MetricConfig("a", stages=["val"]), MetricConfig("b", stages=["test"])]
    assert set(StageMetrics("test", configs).compute()) == {
        f"test/b{suffix}" for suffix in SUFFIXES
    }
    assert StageMetrics("val", []).compute() == {}
    with pytest.raises(InputError, match="two metrics are named 'a'"):
        StageMetrics("val", [MetricConfig("a"), MetricConfig("a")])


def test_masks_are_asked_for_only_where_they_are_compared() -> None:
    box = [3, 4, 10, 12]
    detections, one = found([box], [0], [], [1]), target([box], [0], [], [0], [56])
    del detections["rles"]
    StageMetrics("val", [MetricConfig("m")]).update([detections], [one])
    with pytest.raises(InputError, match="iou_type segm"):
        metrics = StageMetrics("val", [MetricConfig("m", params={"iou_type": "segm"})])
        metrics.update([detections], [one])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "a/b"}, "without a slash"),
        ({"backend": "sklearn"}, "backend 'sklearn' is unknown: choose from torchmetrics"),
        ({"metric_class": "Accuracy"}, "choose from MeanAveragePrecision, "),
        ({"stages": ["train"]}, "stage 'train' is unknown: choose from val, test"),
        (
            {"params": {"iou": "segm"}},
            "parameter 'iou' is unknown: choose from box_format, iou_type",
        ),
        ({"params": {"sync_on_compute": True}}, "parameter 'sync_on_compute' is unknown"),
        ({"params": {"iou_type": "mask"}}, "'segm', 'bbox'"),
        ({"params": {"max_detection_thresholds": [1, 10, 50]}}, "must have 100"),
        ({"params": {"extended_summary": True}}, "cannot be logged"),
        (
            {"backend": "hotcoco", "metric_class": "IntersectionOverUnion"},
            "metric_class of hotcoco 'IntersectionOverUnion' is unknown: choose from MeanAverage",
        ),
        (
            {"backend": "hotcoco", "params": {"iou_thresholds": [0.5]}},
            "parameter of hotcoco 'iou_thresholds' is unknown: choose from iou_type, class_metrics",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        MetricConfig(**({"name": "m"} | wrong))
    assert message in str(caught.value)


def _configs() -> list[MetricConfig]:
    return [
        MetricConfig("mask", params={"iou_type": "segm"}),
        MetricConfig("fast", "hotcoco", params={"iou_type": "segm", "class_metrics": True}),
        MetricConfig("box", params={"class_metrics": True}),
        MetricConfig("iou", metric_class="IntersectionOverUnion"),
    ]


def on_two_ranks(rank: Callable[[int, str, Any], None], folder: Path, images: Any) -> None:
    """Runs ``rank`` in two processes, forks of the server that :mod:`forked` has set up."""
    given = (str(folder), images)
    mp.start_processes(rank, given, nprocs=2, start_method="forkserver")


def _rank(rank: int, folder: str, images: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        values = []
        every = range(len(images))
        # In turns, unevenly, all of them on one rank, and some of them on both.
        turns = every[::2], every[1::2]
        shares = (turns, (every[:7], every[7:]), (every, []), ([], every), (turns[0], every))
        for share in shares:
            metrics = StageMetrics("val", _configs())
            for i in share[rank]:
                metrics.update(*([part] for part in images[i]), [i])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore" if share[1] is every and share[0] else "error")
                values.append(metrics.compute())
        torch.save(values, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path, disturbance: Any) -> None:
    images = list(zip(*disturbance[2:], strict=True))[:24]
    for detections, _ in images:  # equal scores, between which the order of the images decides
        detections["scores"] = detections["scores"].round(decimals=1)
    on_two_ranks(_rank, tmp_path, images)
    alone = StageMetrics("val", _configs())
    alone.update(*zip(*images, strict=True))
    expected = {key: float(value) for key, value in alone.compute().items()}
    assert 0.1 < expected["val/mask"] < 0.9
    backwards = StageMetrics("val", _configs())
    backwards.update(*zip(*images[::-1], strict=True))
    assert float(backwards.compute()["val/fast"]) != expected["val/fast"]
    for rank in (0, 1):
        for values in torch.load(tmp_path / f"{rank}.pt", weights_only=True):
            assert {key: float(value) for key, value in values.items()} == expected


def _failing_rank(rank: int, folder: str, images: Any) -> None:
    """A metric raises on rank 0 or 1, in what torchmetrics or hotcoco does there."""
    from torchmetrics.detection import IntersectionOverUnion

    from autotimm.evaluation import by_hotcoco

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no room\nfor it")

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    configs = [MetricConfig("iou", metric_class="IntersectionOverUnion"), MetricConfig("box")]
    configs.append(MetricConfig("fast", "hotcoco"))
    cases = []
    try:
        for where, owner, name in (
            (0, IntersectionOverUnion, "compute"),
            (1, IntersectionOverUnion, "compute"),
            (0, IntersectionOverUnion, "update"),
            (1, by_hotcoco, "matched"),
            (0, by_hotcoco, "values"),
            (1, by_hotcoco, "values"),
        ):
            metrics = StageMetrics("val", configs)
            for detections, one in images[rank::2]:
                metrics.update([detections], [one])
            with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if rank == where:
                    patch.setattr(owner, name, fail)
                values = metrics.compute()
            # What follows is a collective of the same shape on all ranks.
            dist.all_reduce(torch.stack(list(values.values())))
            cases.append(values)
        torch.save(cases, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_a_metric_that_fails_on_one_rank_ends_nothing(tmp_path: Path) -> None:
    images = [
        (found([[0, 0, 9, 9 + i]], [0], [], [0.5]), target([[0, 0, 9, 9]], [0], [], [0], [81]))
        for i in range(4)
    ]
    on_two_ranks(_failing_rank, tmp_path, images)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert str(first) == str(second)
    # The first rank joins what the others found: what is broken on them alone does no harm.
    of_iou, of_fast = (
        [bool(values[f"val/{name}"].isnan()) for values in first] for name in ("iou", "fast")
    )
    assert of_iou == [True, False, True, False, False, False]
    assert of_fast == [False, False, False, True, True, False]
    assert all(values["val/box"] > 0 for values in first)


def test_a_metric_that_fails_alone_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.detection import MeanAveragePrecision

    def fail(*_: Any) -> None:
        raise ValueError("as it\n happens")

    configs = [MetricConfig("box"), MetricConfig("iou", metric_class="IntersectionOverUnion")]
    metrics, fresh = StageMetrics("val", configs), StageMetrics("val", configs)
    image = found([[0, 0, 9, 9]], [0], [], [0.5])
    for each in (metrics, fresh):
        each.update([image], [target([[0, 0, 9, 9]], [0], [], [0], [81])])
    before = metrics.compute()
    monkeypatch.setattr(MeanAveragePrecision, "compute", fail)
    with pytest.warns(UserWarning, match="val/box fails, and is NaN: ValueError: as it happens"):
        values = metrics.compute()
    assert {*values} == {*before}
    assert all(value.isnan() == ("box" in name) for name, value in values.items())
    assert values["val/iou"] == 1
    with pytest.warns(UserWarning, match="val/box fails"):
        assert {name for name, value in fresh.compute().items() if value.isnan()} == {"val/box"}
