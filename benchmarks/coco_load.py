"""How long does an annotation file of COCO's full size take to load, and how much memory?

    python benchmarks/coco_load.py

Makes the file from a seed: polygons with COCO's mean of some 45 numbers, one crowd in a hundred as
an RLE (half of them uncompressed), annotations in no order, and an empty file for each image, as
``coco.load`` sees to it that every image is there. Then, in turns and each in a process of its own:

    pycocotools    COCO(file), which checks nothing, and a loop that reads every annotation
    coco.load      the same file loaded, checked and indexed

Beside them ``coco.load`` and every record: each annotation parsed again, its geometry checked and
its mask rasterised, which pycocotools leaves to the loop that asks for it. Prints medians.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# NumPy, pycocotools and autotimm are imported by the processes that need them: a child's ru_maxrss
# begins with its parent's, so the parent stays small.

SIDES = ("pycocotools", "coco.load", "coco.load + records")
CATEGORIES = [n for n in range(1, 91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the data (default: a temporary one)")
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--instances", type=int, default=860_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", choices=["make", *SIDES], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "make":
        make(options.out, options.images, options.instances, options.seed)
    elif options.child:
        print(json.dumps(measure(options.child, options.out)))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            bench(options.out or Path(temporary), options)


def bench(out: Path, options: argparse.Namespace) -> None:
    """Makes the data where it is missing, runs the sides in turns, prints the table."""
    out.mkdir(parents=True, exist_ok=True)
    done = out / "made.json"
    what = {key: getattr(options, key) for key in ("images", "instances", "seed")}
    if not done.exists():
        child("make", out, *(f"--{key}={value}" for key, value in what.items()))
        done.write_text(json.dumps(what))
    elif json.loads(done.read_text()) != what:
        raise SystemExit(f"{out}: holds other data ({done.read_text()}): name another folder")
    megabytes = (out / "annotations.json").stat().st_size / 1e6
    print(f"{options.images:,} images, {options.instances:,} instances, {megabytes:.0f} MB of JSON")
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.repeats):
        for side in SIDES:
            runs[side].append(json.loads(child(side, out)))
    middle = {
        side: {key: statistics.median(run[key] for run in runs[side]) for key in runs[side][0]}
        for side in SIDES
    }
    print(f"medians of {options.repeats}; in brackets the share of pycocotools")
    for side, values in middle.items():
        cells = (
            f"{values[key]:8.{digits}f} {unit} ({values[key] / middle[SIDES[0]][key]:.2f})"
            for key, digits, unit in (("wall", 2, "s"), ("cpu", 2, "CPU s"), ("peak", 0, "MB peak"))
        )
        print(f"{side:20}", *cells)


def child(side: str, out: Path, *arguments: str) -> str:
    """Runs this file in another process; returns what it prints last."""
    command = [sys.executable, __file__, "--child", side, "--out", str(out), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().rpartition("\n")[2]


def measure(side: str, out: Path) -> dict[str, float]:
    """Runs one side in this process: seconds from before the file is opened, and peak memory."""
    work = read_by_pycocotools() if side == SIDES[0] else read_by_us(records=side == SIDES[2])
    wall, cpu = time.perf_counter(), time.process_time()
    work(out)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"wall": wall, "cpu": cpu, "peak": peak}


def read_by_pycocotools() -> Callable[[Path], None]:
    from pycocotools.coco import COCO

    def work(out: Path) -> None:
        coco = COCO(str(out / "annotations.json"))
        for id_ in coco.getAnnIds():
            coco.loadAnns(id_)

    return work


def read_by_us(records: bool) -> Callable[[Path], None]:
    from autotimm.coco import index as coco

    def work(out: Path) -> None:
        index = coco.load(out / "annotations.json", out / "images")
        for i in range(len(index) if records else 0):
            index.record(i, index.problems)
        if index.problems.counts:
            raise RuntimeError(f"the data is sound, but: {index.problems.lines()}")

    return work


def make(out: Path, images: int, instances: int, seed: int) -> None:
    """Writes ``annotations.json`` and ``images/``."""
    (out / "images").mkdir(exist_ok=True)
    names = [f"{7 * number:012}.jpg" for number in range(images)]
    for name in names:
        (out / "images" / name).touch()
    with (out / "annotations.json").open("w") as file:
        file.write('{"info":{"description":"made from a seed"},"licenses":[],"images":[')
        for number, name in enumerate(names):
            url = f"http://images.example.org/train/{name}"
            entry = {"license": 4, "file_name": name, "coco_url": url, "height": 480, "width": 640}
            entry |= {"date_captured": "2013-11-14 17:02:52", "flickr_url": url, "id": 7 * number}
            file.write("," * bool(number) + json.dumps(entry, separators=(",", ":")))
        file.write('],"annotations":[')
        for number, entry in enumerate(annotations(images, instances, seed)):
            file.write("," * bool(number) + json.dumps(entry, separators=(",", ":")))
        categories = [{"supercategory": "thing", "id": n, "name": f"c{n}"} for n in CATEGORIES]
        file.write(f'],"categories":{json.dumps(categories)}}}')


def annotations(images: int, instances: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yields the annotations: wavy outlines around a random place of a random image."""
    import numpy as np
    from pycocotools import mask

    rng = np.random.default_rng(seed)
    where = rng.integers(0, images, instances)  # neighbours in the file are of different images
    points = np.clip(rng.lognormal(2.95, 0.6, instances), 4, 200).astype(int)
    for number in range(instances):
        count = int(points[number])
        angle = (np.arange(count) + rng.random(count)) / count * 2 * np.pi
        radius = rng.uniform(6, 90) * (1 + 0.3 * rng.random(count))
        centre = rng.uniform([130, 130], [510, 350])[:, None]
        outline = (centre + radius * np.stack([np.cos(angle), np.sin(angle)])).T.round(2)
        (x1, y1), (x2, y2) = outline.min(0).tolist(), outline.max(0).tolist()
        segmentation: Any = [outline.ravel().tolist()]
        if crowd := number % 100 == 99:
            segmentation = mask.frPyObjects(segmentation, 480, 640)[0]
            segmentation["counts"] = segmentation["counts"].decode()
            if number % 200 == 199:
                dense = mask.decode(segmentation).ravel(order="F").astype(np.int8)
                steps = np.flatnonzero(np.diff(dense, prepend=0, append=1 - dense[-1]))
                segmentation["counts"] = np.diff(steps, prepend=0).tolist()
        yield {
            "segmentation": segmentation,
            "area": float(0.7 * (x2 - x1) * (y2 - y1)),
            "iscrowd": int(crowd),
            "image_id": 7 * int(where[number]),
            "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
            "category_id": CATEGORIES[int(where[number]) % 80],
            "id": 900_100_000 + number,
        }


if __name__ == "__main__":
    main()
