"""What does mask AP cost an image, and how much memory, beside torchmetrics?

    python benchmarks/evaluate_masks.py

Makes detections and truths from a seed, as the mask head leaves them: boxes and 28 x 28
probabilities. Then, in turns and each in a process of its own:

    torchmetrics        dense masks, as its documentation has them, then update() and compute()
    torchmetrics, fast  the same with its faster_coco_eval backend, where that is installed
    MetricConfig        ours in training: torchmetrics' AP over masks that stay run-length encoded
    MetricConfig, fast  the same with its hotcoco backend, as the recipes in launch/ have it
    pycocotools         loadRes() and COCOeval over entries of a results file
    autotimm evaluate   the same entries through evaluation.coco_eval: AP, and class by class

Making the masks out of the probabilities (dense for torchmetrics, RLE for the others) is timed by
itself, that of the truths not at all. Prints medians.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from harness import Run, contestant, cpu_seconds, machine, markdown, rounds

SIDES = (
    *("torchmetrics", "torchmetrics, fast", "MetricConfig", "MetricConfig, fast"),
    *("pycocotools", "autotimm evaluate"),
)
CLASSES = 80
TRUTHS = 7  # an image's, as COCO's mean

Image = dict[str, Any]
Backend = Literal["pycocotools", "faster_coco_eval"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--detections", type=int, default=30, help="an image")
    parser.add_argument("--side", type=int, default=640, help="pixels of the square images")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; medians count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for evaluation.md")
    parser.add_argument("--quick", action="store_true", help="a few images, once")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.images, options.repeats = 4, 1
    if options.child:
        print(json.dumps(measure(options.child, options)))
        return
    report = bench(options)
    print(report)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "evaluation.md").write_text(f"# Mask AP\n\n{report}")


def bench(options: argparse.Namespace) -> str:
    """Runs the sides in turns; the table and what it was measured on."""
    there = importlib.util.find_spec("faster_coco_eval")
    sides = [side for side in SIDES if there or side != "torchmetrics, fast"]
    words = [f"--{key}={getattr(options, key)}" for key in ("images", "detections", "side", "seed")]
    script = Path(__file__)
    contestants = {side: contestant(script, "--child", side, *words) for side in sides}
    runs = rounds(contestants, options.repeats, watch=False)
    base = middle(runs[sides[0]], lambda run: run.seconds)
    rows = []
    for side, ones in runs.items():
        seconds = middle(ones, lambda run: run.seconds)
        ms = 1e3 / options.images
        rows.append(
            [
                side,
                f"{ms * seconds:.2f}",
                f"{seconds / base:.3f}",
                f"{ms * middle(ones, lambda run: run.cpu):.2f}",
                f"{ms * middle(ones, lambda run: run.more['making']):.2f}",
                f"{middle(ones, lambda run: run.more['grown']):.0f}",
                f"{ones[0].more['ap']:.6f}",
            ]
        )
    headings = ["", "AP, ms an image", "of torchmetrics", "CPU ms"]
    headings += ["masks made, ms", "MB more at the peak", "AP"]
    what = (
        f"{options.images} images of {options.side} px with {options.detections} detections and"
        f" {TRUTHS} truths each; medians of {options.repeats} rounds."
    )
    return f"{machine([], sys.executable)}\n\n{what}\n\n{markdown(headings, rows)}"


def middle(runs: list[Run], value: Callable[[Run], float]) -> float:
    return statistics.median(map(value, runs))


class Watch:
    """Seconds, by wall and CPU, of what is called inside ``with``; the sum of all times."""

    def __init__(self) -> None:
        self.seconds = self.cpu = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter(), cpu_seconds()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._start[0]
        self.cpu += cpu_seconds() - self._start[1]


def measure(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs one side in this process: what :class:`harness.Run` holds."""
    images = [
        made(np.random.default_rng([options.seed, number]), options.detections, options.side)
        for number in range(options.images)
    ]
    making, metric = Watch(), Watch()
    work = prepared(side, options.side, making, metric)
    work(images[:2])  # what is imported, built and warmed at the first use
    for watch in (making, metric):
        watch.seconds = watch.cpu = 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ap = work(images)
    return {
        "images": options.images,
        "seconds": metric.seconds,
        "cpu": metric.cpu,
        "making": making.seconds,
        "grown": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3,
        "ap": ap,
    }


def made(rng: np.random.Generator, count: int, side: int) -> Image:
    """An image's truths, and detections of them and of nothing: boxes, labels, 28 x 28 masks."""
    import torch

    def boxes(count: int) -> np.ndarray:
        size = np.exp(rng.uniform(np.log(16), np.log(side / 2), (count, 2)))
        corner = rng.uniform(0, 1, (count, 2)) * (side - size)
        return np.concatenate([corner, corner + size], axis=1)

    truths, classes = boxes(TRUTHS), rng.integers(0, CLASSES, TRUTHS)
    hit = np.arange(count) % TRUTHS
    size = np.tile(truths[hit, 2:] - truths[hit, :2], 2)
    near = truths[hit] + rng.normal(0, 0.08, (count, 4)) * size
    true = np.arange(count) < count // 3
    found = np.where(true[:, None], near.clip(0, side), boxes(count))
    labels = np.where(true, classes[hit], rng.integers(0, CLASSES, count))
    scores = np.sort(rng.uniform(0.05, 1, count))[::-1]
    at = (np.arange(28) + 0.5) / 14 - 1
    round_ = np.hypot(at[:, None], at[None])
    wave = 1 + 0.2 * np.sin(
        rng.integers(2, 6, TRUTHS + count)[:, None, None] * np.arctan2(at[:, None], at[None])
    )
    parts = 1 / (1 + np.exp(12 * (round_ - 0.9 * wave)))
    as_tensor = torch.from_numpy
    return {
        "truths": as_tensor(truths).float(),
        "classes": as_tensor(classes),
        "true_parts": as_tensor(parts[:TRUTHS]).float(),
        "boxes": as_tensor(found).float(),
        "labels": as_tensor(labels),
        "scores": as_tensor(scores.copy()).float(),
        "parts": as_tensor(parts[TRUTHS:]).float(),
    }


def prepared(side: str, size: int, making: Watch, metric: Watch) -> Callable[[list[Image]], float]:
    """What takes images and returns AP, timing the making of masks and what comes of them."""
    if side.startswith("torchmetrics"):
        backend: Backend = "faster_coco_eval" if side.endswith("fast") else "pycocotools"
        return lambda images: by_torchmetrics(images, size, making, metric, backend)
    if side.startswith("MetricConfig"):
        library = "hotcoco" if side.endswith("fast") else "torchmetrics"
        return lambda images: by_metric_config(images, size, making, metric, library)
    return lambda images: by_results(images, size, making, metric, side == "pycocotools")


def by_torchmetrics(
    images: list[Image], size: int, making: Watch, metric: Watch, backend: Backend
) -> float:
    from torchmetrics.detection import MeanAveragePrecision

    from autotimm.models import paste

    measured = MeanAveragePrecision(iou_type="segm", backend=backend)
    measured.warn_on_many_detections = False
    for one in images:
        truths = paste.dense(one["true_parts"], one["truths"], size, size).bool()
        with making:
            masks = paste.dense(one["parts"], one["boxes"], size, size).bool()
        found = {"masks": masks, "labels": one["labels"], "scores": one["scores"]}
        with metric:
            measured.update([found], [{"masks": truths, "labels": one["classes"]}])
    with metric, contextlib.redirect_stdout(io.StringIO()):
        return float(measured.compute()["map"])


def by_metric_config(
    images: list[Image], size: int, making: Watch, metric: Watch, backend: str
) -> float:
    import torch

    from autotimm.evaluation.metrics import MetricConfig, StageMetrics

    stage = StageMetrics("val", [MetricConfig("AP", backend, params={"iou_type": "segm"})])
    for one in images:
        found, truths = encoded(one, size, making)
        none = torch.zeros(len(truths["labels"]), dtype=torch.int64)
        area = (truths["boxes"][:, 2:] - truths["boxes"][:, :2]).prod(1)
        target: Any = {**truths, "iscrowd": none, "area": area}
        with metric:
            stage.update([found], [target])
    with metric, contextlib.redirect_stdout(io.StringIO()):
        return float(stage.compute()["val/AP"])


def by_results(
    images: list[Image], size: int, making: Watch, metric: Watch, by_pycocotools: bool
) -> float:
    from autotimm.coco import masks
    from autotimm.evaluation import coco_eval

    truth: dict[str, Any] = {
        "images": [{"id": n, "height": size, "width": size} for n in range(len(images))],
        "annotations": [],
        "categories": [{"id": n, "name": str(n)} for n in range(CLASSES)],
    }
    results: list[dict[str, Any]] = []
    for number, one in enumerate(images):
        found, truths = encoded(one, size, making)
        with metric:
            results += coco_eval.to_results(found, number, range(CLASSES))
        for label, rle in zip(truths["labels"].tolist(), truths["rles"], strict=True):
            entry = {"id": len(truth["annotations"]) + 1, "image_id": number, "iscrowd": 0}
            entry |= {"category_id": label, "segmentation": rle, "area": masks.area(rle)}
            truth["annotations"].append({**entry, "bbox": masks.box(rle)})
    if not by_pycocotools:
        with metric:
            return coco_eval.compare(truth, results, "segm").stats["AP"]

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with metric, contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(results), "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
        return float(run.stats[0])


def encoded(one: Image, size: int, making: Watch) -> tuple[Any, Any]:
    """Detections and truths with masks as RLE; those of the truths are not timed."""
    from autotimm.models import paste

    truths = paste.encode(one["true_parts"], one["truths"], size, size)
    with making:
        rles = paste.encode(one["parts"], one["boxes"], size, size)
    found = {key: one[key] for key in ("boxes", "labels", "scores")}
    return {**found, "rles": rles}, {
        "boxes": one["truths"],
        "labels": one["classes"],
        "rles": truths,
    }


if __name__ == "__main__":
    main()
