"""One rank of ``scale.py``: what the ranks exchange, or what a training step loses.

    torchrun --standalone --nproc-per-node 4 scale_worker.py exchange
    torchrun --standalone --nproc-per-node 2 scale_worker.py step FOLDER

The first rank prints one line of JSON. All is seconds unless it says otherwise.
"""

from __future__ import annotations

import json
import os
import pickle
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import SimpleProfiler
from torch.optim import Optimizer

from autotimm import AutoTrainer, InstanceSegmentationDataModule, InstanceSegmentor
from autotimm.coco import masks
from autotimm.distributed.agreement import over_gloo
from autotimm.distributed.rendezvous import launcher_rendezvous
from autotimm.evaluation.metrics import MetricConfig, StageMetrics
from autotimm.setup.check import compare_reports
from autotimm.setup.report import Report, packages

WAIT = timedelta(minutes=5)
SKIP = 4  # steps that are not counted: workers start, buffers are made
BATCH = 2  # images a step on each rank


def main() -> None:
    quick = "--quick" in sys.argv
    torch.set_num_threads(1)
    told = exchange(quick) if sys.argv[1] == "exchange" else step(Path(sys.argv[2]), quick)
    if int(os.environ["RANK"]) == 0:
        print(json.dumps(told), flush=True)


def exchange(quick: bool) -> dict[str, float]:
    """What the ranks of a real job exchange, each by itself."""
    meeting = launcher_rendezvous(WAIT)
    report = Report(host="node", same={"packages": packages(), "settings": settings()})
    told = {}
    if meeting is not None:
        told["check"] = median(lambda: meeting.exchange(report, compare_reports), 5)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    flag = torch.zeros(())
    told["flag"] = median(lambda: dist.all_reduce(flag), 50)
    if meeting is not None:
        agreement = over_gloo(meeting, WAIT)

        def agree() -> None:
            agreement.ask()
            agreement.answer()

        told["agreement"] = median(agree, 50)
    weights = torch.zeros(1_000_000 if quick else 34_900_000)  # a ResNet-50 with its heads
    told["gradient_bytes"] = 4 * len(weights)
    told["gradients"] = median(lambda: dist.all_reduce(weights), 3)
    images = 50 if quick else 5000
    metrics = StageMetrics("val", [MetricConfig("segm", params={"iou_type": "segm"})])
    made = [pickle.dumps(image(seed)) for seed in range(20)]
    part = [pickle.loads(made[n % len(made)]) for n in range(rank, images, world)]  # noqa: S301
    metrics.update([found for found, _ in part], [truth for _, truth in part])
    if world == 1:
        tenth = StageMetrics("val", metrics.configs)
        tenth.update(*zip(*part[: images // 10], strict=True))
        start = time.perf_counter()
        tenth.compute()
        told["ap_of_a_tenth"] = time.perf_counter() - start
    metrics._joined = lambda *_: ({}, [])  # type: ignore[method-assign]  # the gathering alone
    told["image_bytes"] = len(pickle.dumps(part)) / len(part)
    told["gather"] = median(metrics.compute, 3)
    dist.destroy_process_group()
    return told


def settings() -> dict[str, str]:
    """As many as a run has."""
    return {f"setting {n}": "a value of some length" for n in range(50)}


def image(seed: int) -> tuple[Any, Any]:
    """A hundred detections and seven instances: discs as large as COCO's instances, 480 x 640."""
    rng = np.random.default_rng(seed)

    def instances(count: int) -> dict[str, Any]:
        centre, radius = rng.uniform((0, 0), (640, 480), (count, 2)), rng.uniform(8, 100, count)
        y, x = np.mgrid[:480, :640]
        discs = [
            (((x - cx) ** 2 + (y - cy) ** 2) <= r * r).astype(np.uint8)
            for (cx, cy), r in zip(centre[:7], radius[:7], strict=True)
        ]
        rles = [masks.encode(disc) for disc in discs]
        return {
            "boxes": torch.from_numpy(np.concatenate([centre, centre + 9], 1)).float(),
            "labels": torch.from_numpy(rng.integers(0, 80, count)),
            "rles": [rles[n % len(rles)] for n in range(count)],
        }

    found = instances(100) | {"scores": torch.rand(100)}
    truth = instances(7)
    truth |= {"iscrowd": torch.zeros(7, dtype=torch.int64), "area": torch.ones(7)}
    # Each in memory of its own, as a model makes them: a pickle would hold shared ones once.
    found["rles"] = [
        {"size": [*rle["size"]], "counts": (rle["counts"] + " ")[:-1]} for rle in found["rles"]
    ]
    return found, truth


class Clock(Callback):
    """The last callback: when the steps that count began and ended, and the optimizer's share."""

    def __init__(self) -> None:
        self.began = self.ended = self.optimizer = self._stepping = 0.0
        self.steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.optimizers[0].register_step_post_hook(self._stepped)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._stepping = time.perf_counter()

    def _stepped(self, *_: Any) -> None:
        if self.steps >= SKIP:
            self.optimizer += time.perf_counter() - self._stepping

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += 1
        self.ended = time.perf_counter()
        if self.steps == SKIP:
            self.began = self.ended


def step(folder: Path, quick: bool) -> dict[str, Any]:
    """What a step of a training takes, in milliseconds, and where it goes.

    Lightning's own profiler times every hook; the forward and backward pass (with DDP's
    all-reduce inside) and the optimizer's step (with clipping) are the work, all else is lost.
    """
    profiler, clock = SimpleProfiler(folder, "profile"), Clock()
    data = InstanceSegmentationDataModule(
        str(folder / "data"),
        image_size=96 if quick else 320,
        batch_size=BATCH,
        num_workers=1,
        val_split=None,
    )
    model = InstanceSegmentor(
        backbone="resnet10t" if quick else "resnet18",
        pretrained=False,
        num_classes=data.num_classes,
        fpn_channels=96,
        mask_rois=32,
        compile_model=False,
    )
    trainer = AutoTrainer(
        accelerator="cpu",
        max_steps=steps_of(quick),
        max_epochs=-1,
        gradient_clip_val=10.0,
        profiler=profiler,
        default_root_dir=folder / "runs",
        enable_progress_bar=False,
    )
    trainer.callbacks.append(clock)  # behind all others
    trainer.fit(model, datamodule=data)
    counted = clock.steps - SKIP
    wall = 1e3 * (clock.ended - clock.began) / counted
    parts: dict[str, float] = {}
    for action, durations in profiler.recorded_durations.items():
        name = part_of(action)
        if name:
            # Of every step, or of nothing that a step has.
            took = durations[-counted:] if len(durations) >= counted else []
            parts[name] = parts.get(name, 0.0) + 1e3 * sum(took) / counted
    work = parts.pop("forward") + parts.pop("backward") + 1e3 * clock.optimizer / counted
    known = {name: took for name, took in parts.items() if took >= 0.005}
    rest = wall - work - sum(known.values())
    return {"step": wall, "work": work, "parts": known | {"Lightning's loop": rest}}


def steps_of(quick: bool) -> int:
    """Steps of a training, less than an epoch, whose end is no step's."""
    return SKIP + (4 if quick else 40)


def part_of(action: str) -> str | None:
    """The part of a step that an action of the profiler counts for; None for none of its own."""
    if action.startswith("[Callback]"):
        return action.removeprefix("[Callback]").partition(".")[0].partition("{")[0]
    for end, name in {
        ".training_step": "forward",  # the strategy's
        ".backward": "backward",
        ".train_dataloader_next": "the loader's next batch",
        ".on_after_batch_transfer": "normalising",
    }.items():
        if action.endswith(end):
            return name
    return None


def median(work: Callable[[], Any], repeats: int) -> float:
    """Seconds of a call, the median on this rank, after one that all ranks make together."""
    spent = []
    for _ in range(repeats + 1):
        if dist.is_initialized():
            dist.barrier()
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[1:])


if __name__ == "__main__":
    main()
