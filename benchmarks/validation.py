"""What does validation cost on several ranks: drawing masks, comparing them, joining the ranks?

    python benchmarks/validation.py [CHECKOUT ...] [--ranks N] [--repeats N]

Without CHECKOUT this one is measured; with several, such as the build before beside this one, all
of them take turns. In a round, N processes over gloo each draw the masks of their share of the
images (``paste.encode``), hand them to ``StageMetrics`` and compute mask AP by ``hotcoco``. The
network is left out, and so are its figures: times are CPU seconds of the processes alone.

The first rank's own part is what it needs for AP beyond the mean of the others. Images are made
from a seed, as the mask head leaves them. Prints medians, and ratios of every round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from evaluate_masks import Image, made
from harness import machine, markdown, progress

OWN = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkouts", nargs="*", type=Path, default=[OWN])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--detections", type=int, default=100, help="an image")
    parser.add_argument("--side", type=int, default=640, help="pixels of the square images")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; medians count")
    parser.add_argument("--out", type=Path, help="file for the tables")
    parser.add_argument("--quick", action="store_true", help="a few images, once")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--meeting", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.images, options.repeats = 6, 1
    if options.child is not None:
        print(json.dumps(measure(options)))
        return
    report = bench(options)
    print(report)
    if options.out:
        options.out.write_text(f"# Validation on several ranks\n\n{report}")


def bench(options: argparse.Namespace) -> str:
    """Runs the checkouts in turns; a table, the ratios, and what they were measured on."""
    folders = [folder.resolve() for folder in options.checkouts]
    rounds: list[list[dict[str, float]]] = []
    for number in range(options.repeats):
        progress(f"round {number + 1} of {options.repeats}")
        rounds.append([one_round(folder, options) for folder in folders])
    progress("")
    rows = {
        "CPU s, all ranks": "total",
        "drawing and encoding, CPU ms an image": "drawing",
        "comparing and joining, CPU ms an image": "computing",
        "the first rank's own part, CPU s": "own",
        "mask AP": "ap",
    }
    table = []
    for name, key in rows.items():
        medians = map(statistics.median, zip(*by_round(rounds, key), strict=True))
        form = ".6f" if key == "ap" else ".4g"
        table.append([name, *(format(one, form) for one in medians)])
    lines = [
        f"{machine([], sys.executable)}\n",
        f"{options.images} images of {options.side} px with {options.detections} detections each, "
        f"on {options.ranks} ranks; medians of {options.repeats} rounds.\n",
        markdown(["", *(folder.name for folder in folders)], table),
    ]
    if len(folders) > 1:
        lines += [
            f"{name}, as a share of the first build's: "
            + ratios([last / first for first, *_, last in by_round(rounds, key)])
            for name, key in list(rows.items())[:4]
        ]
    return "\n".join(lines)


def by_round(rounds: list[list[dict[str, float]]], key: str) -> list[list[float]]:
    return [[one[key] for one in each] for each in rounds]


def ratios(values: list[float]) -> str:
    every = ", ".join(f"{value:.3f}" for value in values)
    return f"median {statistics.median(values):.3f} of {every}  "


def one_round(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """All ranks of one checkout, at once; what they cost."""
    keys = ("images", "detections", "side", "ranks")
    words = [f"--{key}={getattr(options, key)}" for key in keys]
    env = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as meeting:
        calls = [
            subprocess.Popen(
                [
                    *(sys.executable, __file__, *words),
                    *(f"--child={rank}", f"--meeting={meeting}/store"),
                ],
                env=env,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(options.ranks)
        ]
        told = [call.communicate() for call in calls]
    for call, (_, error) in zip(calls, told, strict=True):
        if call.returncode:
            raise SystemExit(f"{folder}: {error}")
    first, *others = (json.loads(out.splitlines()[-1]) for out, _ in told)
    drawing, computing = (
        sum(one[key] for one in (first, *others)) for key in ("drawing", "computing")
    )
    return {
        "total": drawing + computing,
        "drawing": 1e3 * drawing / options.images,
        "computing": 1e3 * computing / options.images,
        "own": first["computing"] - statistics.fmean([one["computing"] for one in others] or [0]),
        "ap": first["ap"],
    }


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One rank's CPU seconds, and AP."""
    import torch
    import torch.distributed as dist

    from autotimm.evaluation.metrics import MetricConfig, StageMetrics
    from autotimm.models import paste

    dist.init_process_group(
        "gloo",
        init_method=f"file://{options.meeting}",
        rank=options.child,
        world_size=options.ranks,
    )
    torch.set_num_threads(1)
    side = options.side
    numbers = range(options.child, options.images, options.ranks)
    images = [
        made(np.random.default_rng([0, number]), options.detections, side) for number in numbers
    ]
    targets = [target(one, side) for one in images]

    def validate(count: int) -> dict[str, float]:
        metrics = StageMetrics("val", [MetricConfig("AP", "hotcoco", params={"iou_type": "segm"})])
        start = time.process_time()
        for number, one, there in list(zip(numbers, images, targets, strict=True))[:count]:
            rles = paste.encode(one["parts"], one["boxes"], side, side)
            found: Any = {key: one[key] for key in ("boxes", "labels", "scores")}
            metrics.update([{**found, "rles": rles}], [there], [number])
        drawn = time.process_time()
        ap = float(metrics.compute()["val/AP"])
        return {"drawing": drawn - start, "computing": time.process_time() - drawn, "ap": ap}

    validate(2)  # what is imported, built and warmed at the first use
    told = validate(options.images)
    dist.destroy_process_group()
    return told


def target(one: Image, side: int) -> Any:
    """An image's truths with their masks."""
    import torch

    from autotimm.models import paste

    return {
        "boxes": one["truths"],
        "labels": one["classes"],
        "rles": paste.encode(one["true_parts"], one["truths"], side, side),
        "iscrowd": torch.zeros(len(one["classes"]), dtype=torch.int64),
        "area": (one["truths"][:, 2:] - one["truths"][:, :2]).prod(1),
    }


if __name__ == "__main__":
    main()
