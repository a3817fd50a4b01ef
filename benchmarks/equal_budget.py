"""Who learns more from the same images? Ours and torchvision's Mask R-CNN, step for step.

    python benchmarks/equal_budget.py
    python benchmarks/equal_budget.py --data COCO_FOLDER --size 640 --backbone resnet50 \\
        --boxes 512 --proposals 2000 --device cuda

    python benchmarks/equal_budget.py --only "autotimm,autotimm box_quality=iou,torchvision"

All begin with the same backbone weights, see the same augmented batches in the same order, in
float32, and are measured by pycocotools on images they have not seen, at their original size. Each
has its own recipe: ours that of launch/small_cpu.yaml, torchvision that of its reference training
(SGD, learning rate 0.02 at batch 16 scaled with the batch, steps after 16/26 and 22/26 of the run);
"with our recipe" stands for torchvision's network under ours. On a CPU, torchvision's 512 sampled
boxes and 2,000 proposals an image are cut down (``--boxes``, ``--proposals``), or it would take
days. Without ``--data``, painted shapes.

Settings of the model behind ``autotimm`` make another contestant, so that what a setting gains can
be measured: runs of one seed begin with the same weights and see the same batches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import contestants
import timm
import torch
from harness import markdown, progress
from torch import Tensor, nn

from autotimm import InputError, InstanceSegmentationDataModule
from autotimm.coco import index, layouts
from autotimm.data.synthetic import make_dataset
from autotimm.evaluation import coco_eval


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--data", type=Path, help="a COCO folder (default: painted shapes)")
    add("--train", default="train", help="split to train on (train)")
    add("--val", default="val", help="split to measure on (val)")
    add("--painted", type=int, default=600, help="painted training images (600)")
    add(
        "--size",
        type=int,
        nargs="+",
        default=[192],
        help="side of the canvas, or height and width (192)",
    )
    add("--augment", type=_preset, default="light", help="preset, or its numbers as JSON (light)")
    add("--backbone", default="resnet18", help="a timm model with maps at stride 4 (resnet18)")
    add("--backbone-lr-factor", type=float, default=1.0, help="for AdamW (1)")
    add("--fpn-channels", type=int, default=256, help="width of pyramids and heads (256)")
    add("--head-convs", type=int, default=4, help="convolutions in each tower of ours (4)")
    add("--weights", type=Path, help="a file of its weights (default: random ones, by seed)")
    add("--images-seen", type=int, default=2400, help="of training, repeats counted (2400)")
    add("--batch-size", type=int, default=4)
    add("--seeds", type=int, default=2, help="runs of each (2)")
    add(
        "--boxes",
        type=int,
        default=64,
        help="torchvision's sampled boxes an image, a quarter of them for masks; ours has as many "
        "for masks (64)",
    )
    add("--proposals", type=int, default=200, help="and its proposals (200)")
    add(
        "--only",
        default=",".join(("autotimm", *contestants.THEIRS)),
        help="contestants, with commas between (all without settings)",
    )
    add("--out", type=Path, help="a file to add a line of JSON to for each run")
    add("--device", default="cpu")
    add("--quick", action="store_true", help="a few images, once: does it run at all?")
    given = options.parse_args()
    unseen = 100
    if given.quick:
        given.painted, unseen, given.size, given.seeds = 6, 4, [96], 1
        given.images_seen, given.batch_size, given.boxes, given.proposals = 8, 2, 16, 20
    try:
        for name in given.only.split(","):
            contestants.check(name)
        with tempfile.TemporaryDirectory() as temporary:
            folder = given.data or Path(temporary) / "painted"
            if given.data is None:
                make_dataset(folder, train=given.painted, val=unseen, size=192, seed=0)
            bench(folder, given)
    except InputError as error:
        sys.exit(f"error: {error}")


def bench(folder: Path, given: argparse.Namespace) -> None:
    """Trains and measures all contestants, seed by seed, and prints the table."""
    splits = layouts.find_splits(folder)
    if given.val not in splits:
        raise InputError(f"{folder}: no split {given.val!r}, only {', '.join(splits)}")
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in given.only.split(",")}
    for seed in range(given.seeds):
        for name in rows:
            found = run(name, folder, splits[given.val], seed, given)
            rows[name].append(found)
            if given.out is not None:
                with given.out.open("a") as file:
                    file.write(json.dumps({"seed": seed, "contestant": name, **found}) + "\n")
            said = ", ".join(f"{key} {value:.3f}" for key, value in found.items())
            print(f"seed {seed}, {name}: {said}", file=sys.stderr)  # hours may follow
    print(
        f"{given.images_seen:,} images seen in batches of {given.batch_size} at "
        f"{' x '.join(map(str, given.size))} px, {given.backbone} from "
        f"{given.weights or 'random weights'}, {given.seeds} seeds: mean (lowest to highest)\n"
    )
    keys = ("box AP", "box AP50", "mask AP", "mask AP50")
    speeds = ("CPU s a step", "images/s")
    table = []
    for name, runs in rows.items():
        figures = [spread([one[key] for one in runs], 3) for key in keys]
        cost = (spread([one[key] for one in runs], 2) for key in speeds)
        table.append([name, *figures, *cost])
    print(markdown(("contestant", *keys, *speeds), table))


def spread(values: list[float], digits: int) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def run(
    name: str, folder: Path, val: index.Split, seed: int, given: argparse.Namespace
) -> dict[str, float]:
    """One contestant's training and its AP."""
    trained = timm.get_pretrained_cfg(given.backbone)
    data = InstanceSegmentationDataModule(
        folder,
        given.size[0] if len(given.size) == 1 else given.size,
        given.batch_size,
        0,
        given.augment,
        train_split=given.train,
        val_split=given.val,
        seed=seed,
        pin_memory=False,
        mean=trained.mean,
        std=trained.std,
    )
    data.setup("fit")
    torch.manual_seed(seed)
    weights = timm.create_model(
        given.backbone,
        pretrained=given.weights is not None,
        pretrained_cfg_overlay={"file": str(given.weights)} if given.weights else None,
    ).state_dict()
    steps = given.images_seen // given.batch_size
    made = contestants.make(name, data.num_classes, weights, steps, given)
    made.model.to(given.device).train()
    schedule = torch.optim.lr_scheduler.LambdaLR(made.optimizer, made.factor)
    wall, cpu = time.perf_counter(), 0.0
    for step, batch in zip(range(steps), batches(data, given.device), strict=False):
        begun = time.process_time()
        loss = made.loss(batch)
        made.optimizer.zero_grad()
        loss.backward()
        if made.clip is not None:
            nn.utils.clip_grad_norm_(made.model.parameters(), made.clip)
        made.optimizer.step()
        schedule.step()
        cpu += time.process_time() - begun
        if step % 20 == 0:
            progress(f"seed {seed}, {name}: step {step} of {steps}, loss {loss.item():.3f}")
    speed = steps * given.batch_size / (time.perf_counter() - wall)
    made.model.eval()
    results: list[dict[str, Any]] = []
    ids = [category.id for category in data.categories]
    loader: Any = data.val_dataloader()
    for batch in loader:
        ready = to(data.on_after_batch_transfer(batch, 0), given.device)
        found = zip(made.detect(ready), ready["image_id"], ready["padding"], strict=True)
        for detections, image_id, padding in found:
            if not padding:
                results += coco_eval.to_results(detections, int(image_id), ids)
    ap = {"images/s": speed, "CPU s a step": cpu / steps}
    for kind, label in (("bbox", "box"), ("segm", "mask")):
        stats = coco_eval.evaluate(val.annotation_file, results, kind)  # type: ignore[arg-type]
        ap |= {f"{label} AP": stats["AP"], f"{label} AP50": stats["AP50"]}
    return ap


def batches(data: InstanceSegmentationDataModule, device: str) -> Iterator[dict[str, Any]]:
    """Normalised training batches without end, epoch after epoch."""
    loader = data.train_dataloader()
    while True:
        for batch in loader:
            yield to(data.on_after_batch_transfer(batch, 0), device)


def _preset(text: str) -> str | dict[str, Any]:
    return json.loads(text) if text.startswith("{") else text


def to(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


if __name__ == "__main__":
    main()
