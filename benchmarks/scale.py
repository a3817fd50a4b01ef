"""What a job costs by the number of its ranks: measured on a few, simulated up to 1,024.

    python benchmarks/scale.py

Measured with real processes over gloo on this machine: the check of the set-up, what the ranks
exchange in a step and in an evaluation, and what a step of a training loses to anything but
computing and the all-reduce. Simulated: 1,024 clients of the store in which the ranks meet, and
which samples, shards and bytes a rank or a node of so many reads.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import machine, markdown, progress
from scale_worker import BATCH as IMAGES
from scale_worker import settings, steps_of
from torch.distributed import PrefixStore, TCPStore

from autotimm import InstanceSegmentor
from autotimm.checkpoints.storage import PlainCheckpointIO
from autotimm.data.synthetic import make_dataset
from autotimm.distributed.rendezvous import Rendezvous
from autotimm.setup.check import compare_reports
from autotimm.setup.report import Report
from autotimm.streaming.order import WINDOW, EpochOrder, Plan, batch_positions
from autotimm.structures import World

WORKER = Path(__file__).with_name("scale_worker.py")
COCO = np.array([1003] * 117 + [936])  # 118,287 images in 118 shards
LARGE = np.full(100_000, 1000)  # a hundred million
SHARD_GB = 19.3 / len(COCO)  # of COCO's images, as they were encoded
BATCH, PER_NODE = 8, 8  # images a rank, ranks a node
_WAIT = timedelta(minutes=5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", default="1,2,4,8", help="numbers of processes (1,2,4,8)")
    parser.add_argument("--only", default="exchange,step,checkpoint,simulate", help="some of these")
    parser.add_argument("--quick", action="store_true", help="does it run at all?")
    options = parser.parse_args()
    parts = options.only.split(",")
    ranks = [int(n) for n in options.ranks.split(",")]
    print(machine([], sys.executable) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        if "exchange" in parts:
            print(exchanged(ranks, options.quick))
        if "step" in parts:
            print(
                lost([n for n in ranks if n <= (os.cpu_count() or 1)], Path(folder), options.quick)
            )
        if "checkpoint" in parts:
            print(checkpoints(Path(folder), options.quick))
    if "simulate" in parts:
        print(simulated([8, 64] if options.quick else [8, 64, 256, 1024]))


def worker(ranks: int, *words: object) -> dict[str, Any]:
    """Runs the worker on so many processes; what its first rank told."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, f"--nproc-per-node={ranks}", str(WORKER), *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))} on {ranks} ranks failed:\n{done.stderr}")
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def exchanged(ranks: list[int], quick: bool) -> str:
    """What the ranks exchange: milliseconds, and what each sends."""
    rows = []
    for n in ranks:
        progress(f"exchange on {n} ranks")
        told = worker(n, "exchange", *["--quick"] * quick)
        sent = 2 * (n - 1) / n * told["gradient_bytes"] / 1e6
        rows.append(
            [
                n,
                *(f"{1e3 * told[k]:.2f}" if k in told else "-" for k in ("check", "flag")),
                f"{1e3 * told['agreement']:.2f}" if "agreement" in told else "-",
                f"{sent:.0f}",
                f"{1e3 * told['gradients']:.0f}",
                f"{told['image_bytes'] / 1e3:.1f}",
                f"{told['gather']:.2f}",
                f"{told['ap_of_a_tenth']:.1f}" if "ap_of_a_tenth" in told else "-",
            ]
        )
    progress("")
    headings = [
        "ranks",
        "check of the set-up, ms",
        "CheckLoss's flag, ms",
        "agreement on signals, ms",
        "gradients: MB that each rank sends",
        "their all-reduce, ms",
        "evaluation: kB an image",
        f"gathering {50 if quick else 5000} images, s",
        f"mask AP of {5 if quick else 500}, s",
    ]
    return markdown(headings, rows)


def lost(ranks: list[int], folder: Path, quick: bool) -> str:
    """What a step loses, part by part, in milliseconds."""
    images = (steps_of(quick) + 1) * IMAGES * max(ranks)
    make_dataset(folder / "data", train=images, val=1, size=320, seed=0)
    told = {}
    for n in ranks:
        progress(f"steps on {n} ranks")
        told[n] = worker(n, "step", folder, *["--quick"] * quick)
    progress("")
    names = dict.fromkeys(name for one in told.values() for name in one["parts"])
    rows: list[list[object]] = [
        ["a step", *(f"{one['step']:.1f}" for one in told.values())],
        ["forward, backward, optimizer", *(f"{one['work']:.1f}" for one in told.values())],
    ]
    for name in names:
        rows.append([name, *(f"{one['parts'].get(name, 0):.2f}" for one in told.values())])
    share = [f"{100 * (1 - one['work'] / one['step']):.1f} %" for one in told.values()]
    rows.append(["lost", *share])
    return markdown(["ms", *(f"{n} rank{'s' * (n > 1)}" for n in told)], rows)


def checkpoints(folder: Path, quick: bool) -> str:
    """Size of a checkpoint, and how long the first rank takes until the disk has it."""
    backbone = "resnet18" if quick else "resnet50"
    model = InstanceSegmentor(backbone=backbone, pretrained=False, num_classes=80)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    rows = []
    for name, copies in (("SGD with momentum", 2), ("AdamW", 3), ("AdamW and the average", 4)):
        state = [{k: v.clone() for k, v in weights.items()} for _ in range(copies)]
        path = folder / "last.ckpt"
        start = time.perf_counter()
        PlainCheckpointIO().save_checkpoint({"state": state}, path)
        rows.append(
            [name, f"{path.stat().st_size / 1e6:.0f}", f"{time.perf_counter() - start:.2f}"]
        )
    return markdown([f"checkpoint of {backbone}", "MB", "seconds"], rows)


def simulated(worlds: list[int]) -> str:
    """What a rank or node of a large job has to do."""
    rows = []
    for world in worlds:
        progress(f"{world} ranks")
        nodes = -(-world // PER_NODE)
        seconds, megabytes = planning(LARGE, world)
        shards = touched(COCO, world)
        rows.append(
            [
                world,
                f"{1e3 * meeting(world):.0f}",
                f"{1e3 * seconds:.0f}",
                f"{megabytes:.1f}",
                f"{Plan(EpochOrder(COCO, 0, 0, True), World(0, world), BATCH).steps:,}",
                f"{shards} of {len(COCO)}",
                f"{nodes * shards * SHARD_GB:,.0f}",
                f"{WINDOW * SHARD_GB:.1f}",
            ]
        )
    progress("")
    headings = [
        "ranks",
        "check of the set-up, ms",
        "planning of 100 million samples, ms",
        "its memory, MB",
        f"steps in an epoch of COCO ({BATCH} images a rank)",
        f"shards of COCO that a node of {PER_NODE} ranks reads",
        "GB that all nodes fetch for it from a server without ranges, once",
        "least cache of a node, GB",
    ]
    return markdown(headings, rows)


def meeting(world: int) -> float:
    """Seconds in which so many clients of one store, threads here, hear their verdict."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4 * world + 256, hard)), hard))
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=_WAIT)
    stores = [
        PrefixStore("a", TCPStore("127.0.0.1", server.port, is_master=False, timeout=_WAIT))
        for _ in range(world)
    ]
    places = [Rendezvous(store, rank, world) for rank, store in enumerate(stores)]
    report = Report(host="node", same={"settings": settings()})
    with ThreadPoolExecutor(world) as pool:
        start = time.perf_counter()
        list(pool.map(lambda place: place.exchange(report, compare_reports, _WAIT), places))
        return time.perf_counter() - start


def planning(sizes: np.ndarray, world: int) -> tuple[float, float]:
    """Seconds and MB for the first batch of an epoch, and one in its middle, of the last rank."""

    def work() -> None:
        order = EpochOrder(sizes, seed=0, epoch=0, shuffle=True)
        for consumed in (0, order.samples // 2):
            order.locate(batch_positions(0, World(world - 1, world), BATCH, consumed))

    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seconds, peak / 1e6


def touched(sizes: np.ndarray, world: int) -> int:
    """Shards of which the first node reads anything in an epoch."""
    order = EpochOrder(sizes, seed=0, epoch=0, shuffle=True)
    found: set[int] = set()
    for rank in range(min(PER_NODE, world)):
        plan = Plan(order, World(rank, world), BATCH)
        for step in range(plan.steps):
            found.update(order.locate(plan.positions(step))[0].tolist())
    return len(found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
