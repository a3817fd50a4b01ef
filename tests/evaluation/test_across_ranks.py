"""Images that are compared on many ranks give pycocotools' numbers, however they are divided."""

from __future__ import annotations

import contextlib
import io
import pickle
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from autotimm.coco import masks
from autotimm.evaluation import by_hotcoco, coco_eval
from autotimm.evaluation.across_ranks import Key, numbered
from autotimm.evaluation.metrics import MetricConfig, StageMetrics
from autotimm.evaluation.parts import labels_of, part_of, values_of

HEIGHT, WIDTH, COUNT = 120, 160, 21
LABELS = (0, 2, 7)
KINDS = {"segm": "", "bbox": "_bbox"}
METRIC = MetricConfig("m", "hotcoco", params={"iou_type": ["segm", "bbox"], "class_metrics": True})
Image = tuple[int, Any, Any]
"""An image's id, its detections and its targets."""


def instances(extents: Sequence[Any], rng: np.random.Generator) -> dict[str, Any]:
    """Boxes, a label and an oval mask of each."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    ovals = [
        ((columns - x) / w * 2 - 1) ** 2 + ((rows - y) / h * 2 - 1) ** 2 < 1
        for x, y, w, h in extents
    ]
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in extents], np.float32)
    return {
        "boxes": torch.from_numpy(boxes.reshape(-1, 4)),
        "labels": torch.from_numpy(rng.choice(LABELS, len(extents))),
        "rles": [masks.encode(oval) for oval in ovals],
    }


def images(seed: int) -> list[Image]:
    """Crowds, empty images and masks, many equal scores, more than 10 detections of a class."""
    rng = np.random.default_rng(seed)
    made: list[Image] = []
    for number in range(COUNT):
        count = int(rng.integers(0, 16)) if number % 5 else 0
        there = np.concatenate([rng.uniform(0, 80, (count, 2)), rng.uniform(3, 110, (count, 2))], 1)
        of = rng.integers(0, max(count, 1), 4 * count)
        near = (there[of] + rng.normal(0, 3, (len(of), 4))).clip(0.2)
        found = np.concatenate([near, rng.uniform(1, 60, (int(rng.integers(0, 9)), 4))])
        target, detections = instances(there, rng), instances(found, rng)
        detections["labels"][: len(of)] = target["labels"][of]  # else they would hardly ever agree
        if number % 7 == 6:
            detections = instances(found[:0], rng)
        target["area"] = torch.tensor([float(masks.area(rle)) for rle in target["rles"]])
        target["iscrowd"] = torch.from_numpy((rng.random(count) < 0.2).astype(np.int64))
        scores = np.sort(rng.integers(1, 6, len(detections["labels"])))[::-1] / 5
        detections["scores"] = torch.from_numpy(scores.astype(np.float32))
        made.append((1000 - 7 * number, detections, target))
    return made


def entries(image_id: int, some: dict[str, Any]) -> list[dict[str, Any]]:
    boxes = some["boxes"].double().tolist()
    return [
        {
            "image_id": image_id,
            "category_id": label,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "segmentation": rle,
        }
        for (x1, y1, x2, y2), label, rle in zip(
            boxes, some["labels"].tolist(), some["rles"], strict=True
        )
    ]


def by_pycocotools(every: Sequence[Image], kind: str, limit: int = 100) -> dict[str, float]:
    """The twelve numbers, and AP and AR of each label, under the names of torchmetrics."""
    truth, found = COCO(), []
    frame = [{"id": id_, "height": HEIGHT, "width": WIDTH} for id_, _, _ in every]
    categories = [{"id": label, "name": str(label)} for label in LABELS]
    annotations: list[dict[str, Any]] = []
    for id_, detections, target in every:
        for k, one in enumerate(entries(id_, target)):
            area, crowd = float(target["area"][k]), int(target["iscrowd"][k])
            annotations.append(one | {"id": len(annotations) + 1, "area": area, "iscrowd": crowd})
        for k, one in enumerate(entries(id_, detections)):
            if kind == "segm":
                del one["bbox"]  # loadRes would take its area
            found.append(one | {"score": float(detections["scores"][k])})
    truth.dataset = {"images": frame, "categories": categories, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(found), kind)
        run.params.maxDets = [1, 10, limit]
        run.evaluate()
        run.accumulate()
        run.summarize()
    stats = [float(value) for value in run.stats]
    values = dict(zip(by_hotcoco.SUFFIXES, stats, strict=True))
    for k, label in enumerate(LABELS):
        for name, of_class in (
            ("", run.eval["precision"][..., k, 0, -1]),
            ("_mar_100", run.eval["recall"][..., k, 0, -1]),
        ):
            values[f"{name}_class_{label}"] = coco_eval.mean(of_class)
    return values


def on_ranks(
    parts: Sequence[Sequence[Image]], config: MetricConfig, names: Sequence[str] = ()
) -> dict[str, float]:
    """What ``StageMetrics.compute`` does on as many ranks, in this process."""
    shares = numbered([[Key(id_, given=True) for id_, _, _ in own] for own in parts])
    labels = sorted(set().union(*(labels_of([pair for _, *pair in own]) for own in parts)))  # type: ignore[misc]
    sent = []
    for own, share in zip(parts, shares, strict=True):
        some = [(number, *own[at][1:]) for at, number in share.items()]
        sent.append(pickle.dumps(part_of([config], some, labels)))
    values = values_of(config, [pickle.loads(one) for one in sent], labels, names)  # noqa: S301
    return {name: float(value) for name, value in values.items()}


@pytest.fixture(scope="module")
def every() -> list[Image]:
    made = images(5)
    # Of some masks the box is in another size class, as which loadRes would take them.
    boxes = torch.cat([found["boxes"] for _, found, _ in made])
    areas = [coco_mask.area(rle) for _, found, _ in made for rle in found["rles"]]
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).tolist()
    assert any(area < 32**2 < side for area, side in zip(areas, sides, strict=True))
    return made


@pytest.fixture(scope="module")
def expected(every: list[Image]) -> dict[str, float]:
    both = {kind: by_pycocotools(every, kind) for kind in KINDS}
    values = {f"{KINDS[kind]}{name}": v for kind, one in both.items() for name, v in one.items()}
    assert 0.05 < values[""] < 0.9
    assert 0.05 < values["_bbox"] < 0.9
    assert values[""] != values["_bbox"]
    return values


def test_the_order_of_equal_scores_matters_here(
    every: list[Image], expected: dict[str, float]
) -> None:
    turned = [(-id_, *pair) for id_, *pair in every]
    assert on_ranks([turned], METRIC) != pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("ranks", range(1, 9))
def test_any_number_of_ranks_equals_pycocotools(
    every: list[Image], expected: dict[str, float], ranks: int
) -> None:
    rng = np.random.default_rng(ranks)
    in_turns = [every[rank::ranks] for rank in range(ranks)]
    ends = np.sort(rng.integers(0, COUNT + 1, ranks - 1)).tolist()
    uneven = [every[a:b] for a, b in zip([0, *ends], [*ends, COUNT], strict=True)]
    for parts in (in_turns, uneven):
        assert on_ranks(parts, METRIC) == pytest.approx(expected, abs=1e-6)


def test_ranks_without_images_and_images_on_several(
    every: list[Image], expected: dict[str, float]
) -> None:
    padded = [every[:5], every[5:], every[:3], every[4:7], [every[-1]] * 3]
    for parts in ([[], every, []], [every[1:], [], every[:1]], padded, [every, every]):
        assert on_ranks(parts, METRIC) == pytest.approx(expected, abs=1e-6)
    assert set(on_ranks([[], []], METRIC).values()) == {-1}


def test_a_few_kilobytes_an_image_travel(every: list[Image]) -> None:
    config = MetricConfig("m", "hotcoco", params={"iou_type": "segm"})
    noisy = masks.encode(np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.5)  # 19 kB
    some = [
        (number, {**found, "rles": [noisy] * len(found["rles"])}, target)
        for number, found, target in every
    ]
    part = pickle.dumps(part_of([config], some, LABELS))  # type: ignore[arg-type]
    assert len(part) < 1500 * COUNT


def test_each_limit_of_detections_is_its_own(every: list[Image]) -> None:
    configs = [
        MetricConfig(f"m{limit}", "hotcoco", params={"iou_type": "segm"}, max_detections=limit)
        for limit in (10, 100)
    ]
    metrics = StageMetrics("val", configs)
    for id_, detections, target in every:
        metrics.update([detections], [target], [id_])
    values = metrics.compute()
    for limit in (10, 100):
        wanted = by_pycocotools(every, "segm", limit)
        assert float(values[f"val/m{limit}_mar_{limit}"]) == pytest.approx(wanted["_mar_100"])
    assert values["val/m10_mar_10"] < values["val/m100_mar_100"]


def test_images_are_numbered_by_their_ids_whoever_has_them() -> None:
    own, counted = (lambda *ids: [Key(i, given=True) for i in ids]), Key(0, given=False)
    assert numbered([own(5, -3), own(), own(5, 9, 9)]) == [{1: 1, 0: 2}, {}, {1: 3}]
    # Without ids of their own, the first images of two ranks are two images.
    assert numbered([[counted], [counted]]) == [{0: 1}, {0: 2}]
    assert numbered([[], []]) == [{}, {}]


def test_a_repeated_image_counts_once_and_is_told_of_once(every: list[Image]) -> None:
    configs = [MetricConfig("slow"), MetricConfig("fast", "hotcoco")]
    metrics, plain = StageMetrics("val", configs), StageMetrics("val", configs)
    for id_, detections, target in every[:9]:
        plain.update([detections], [target], [id_])
        metrics.update([detections] * 2, [target] * 2, [id_] * 2)
    with pytest.warns(UserWarning, match="val: 9 of 18 images have the id of another one"):
        assert metrics.compute() == plain.compute()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.compute()


def test_a_rank_that_cannot_compare_its_images_is_named(
    every: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(some: Any, *_: Any) -> None:
        raise MemoryError("no room\nfor it")

    config = MetricConfig("m", "hotcoco")
    sound = part_of([config], every[:4], LABELS)
    monkeypatch.setattr(by_hotcoco, "matched", broken)
    failed = pickle.loads(pickle.dumps(part_of([config], every[4:], LABELS)))  # noqa: S301
    with pytest.raises(Exception, match=r"^MemoryError: no room for it \(on rank 1\)$"):
        values_of(config, [sound, failed], LABELS, ())

    metrics = StageMetrics("val", [config, MetricConfig("other")])
    metrics.update(*([one] for one in every[0][1:]))
    with pytest.warns(UserWarning, match="^val/m fails, and is NaN: MemoryError: no room for it$"):
        values = metrics.compute()
    assert values["val/m"].isnan()
    assert not values["val/other"].isnan()


def test_costs_of_errors_are_computed_only_where_they_are_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Watched(coco_eval.Run):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self._of, self.of = self.of, self

        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return getattr(self._of, name)

    asked: list[str] = []
    monkeypatch.setattr(coco_eval, "Run", Watched)
    image = {"id": 1, "height": HEIGHT, "width": WIDTH, "file_name": "a.jpg"}
    one = {"image_id": 1, "category_id": 1, "bbox": [3, 4, 50, 60]}
    truth = {
        "images": [image],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [one | {"id": 1, "area": 3000, "iscrowd": 0}],
    }
    found = [one | {"score": 0.5}]
    assert coco_eval.evaluate(truth, found, "bbox")["AP"] == pytest.approx(1)
    assert coco_eval.compare(truth, found, "bbox", errors=False).lost == {}
    assert "accumulate" in asked
    assert "tide_errors" not in asked
    assert len(coco_eval.compare(truth, found, "bbox").lost) == len(coco_eval.ERRORS)
    assert asked.count("tide_errors") == 1
