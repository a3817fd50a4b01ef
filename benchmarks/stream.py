"""How fast are shards read? Ours and the peers' readers, interleaved, beside the limits.

    python benchmarks/stream.py
    python benchmarks/stream.py --only raw,decode --data COCO_FOLDER --split val

Sections: raw (samples a second, bytes only), cold (the same with the files out of the page cache),
decode (JPEG to augmented, normalised 640 px batches with boxes and masks), start (opening,
resuming, planning), order (how well it mixes), damage (is it noticed?).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import photos
from harness import Run, command, contestant, cpu_ms, machine, markdown, parser, peers, rate, rounds

from autotimm.coco import index

HERE = Path(__file__).parent
SHARDER = Path(sys.executable).with_name("autotimm-shard")
SECTIONS = ("raw", "cold", "decode", "start", "order", "damage")
_COLD = 0.95  # of the files: a few may be busy
_OWN_FILES = ("mosaicml", "mosaicml-hashes", "litdata")  # the others read autotimm-shard's tars
_NAMES = {
    "jpeg": "JPEG decoding alone (simplejpeg, one core)",
    "folder": "COCO folder, cv2",
    "folder-pil": "COCO folder, PIL",
    "mosaicml-hashes": "mosaicml, validate_hash",
    "autotimm-verify": "autotimm-shard --verify",
}


def main() -> None:
    options = parser(__doc__)
    add = options.add_argument
    add("--split", default="train", help="of --data (train)")
    add("--only", default=",".join(SECTIONS), help="sections, with commas between them (all)")
    add("--samples-per-shard", type=int, default=250)
    add("--decode-images", type=int, default=300, help="images of the decode section (300)")
    add("--batch-size", type=int, default=8, help="of the decode section (8)")
    add("--trials", type=int, default=100, help="of each kind of damage (100)")
    add("--seconds", type=float, default=1.0, help="that each warm reader reads on (1)")
    given = options.parse_args()
    if given.quick:
        given.images, given.decode_images = min(given.images, 24), min(given.decode_images, 16)
        given.repeats, given.trials, given.seconds = 1, min(given.trials, 3), 0.05
    sections = given.only.split(",")
    if unknown := sorted(set(sections) - set(SECTIONS)):
        sys.exit(f"--only: {unknown[0]!r} is none of {', '.join(SECTIONS)}")
    found = peers(given.peers, given.peers_python)
    print(machine(found, given.peers_python), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory(dir=given.work) as temporary:
        work = Path(temporary)
        most = max(given.images, given.decode_images)
        split = photos.split_of(given.data, given.split, work, most, given.seed)
        if {"raw", "cold"} & set(sections):
            containers(split, work / "raw", found, given, given.images)
            raw(work / "raw", found, given, sections)
            shutil.rmtree(work / "raw")
        if "decode" in sections:
            containers(split, work / "decode", found, given, given.decode_images)
            decode(work / "decode", found, given)
            shutil.rmtree(work / "decode")
        if {"start", "order"} & set(sections):
            start(work / "start", given, sections)
        if "damage" in sections:
            also = ["mosaicml-hashes"] if "mosaicml" in found else []
            containers(split, work / "damage", [*found, *also], given, 16)
            damage(work / "damage", [*found, *also], given)


def containers(split: index.Split, root: Path, found: list[str], given: Any, count: int) -> None:
    """Writes the first ``count`` images as a COCO folder, files, shards and the peers' formats."""
    small = root / "coco"
    annotations = small / "annotations" / "instances_train.json"
    annotations.parent.mkdir(parents=True)
    content = json.loads(split.annotation_file.read_bytes())
    content["images"] = content["images"][:count]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    annotations.write_text(json.dumps(content))
    (small / "train").symlink_to(split.image_folder.resolve(), target_is_directory=True)
    (small / "split.json").write_text(
        json.dumps({"annotations": str(annotations), "images": str(split.image_folder)})
    )
    # Several shards for every worker of webdataset, also of few images.
    size = max(1, min(given.samples_per_shard, count // 8))
    call(SHARDER, small, root / "shards", "--samples-per-shard", size)
    (root / "files").mkdir()
    for path in sorted((root / "shards").glob("*.tar")):
        call("tar", "xf", path, "-C", root / "files")
    for name in found:
        if name in _OWN_FILES:
            words = (HERE / "writers.py", name, annotations, split.image_folder, root / name)
            call(given.peers_python, *words)


def raw(root: Path, found: list[str], given: Any, sections: list[str]) -> None:
    """Samples a second, warm and cold."""
    shards, readers = root / "shards", ["files", "tarfile", *found, "autotimm"]
    count = sum(1 for _ in (root / "files").glob("*.json"))

    def reader(name: str, order: str, *more: object) -> Callable[[bool], Run]:
        python = sys.executable if name == "autotimm" else given.peers_python
        return contestant(HERE / "readers.py", name, place(root, name), order, *more, python=python)

    def cat() -> Callable[[bool], Run]:
        return command("sh", "-c", f"cat {shards}/*.tar > /dev/null", images=count)

    def table(title: str, contestants: dict[str, dict[str, Callable[[bool], Run]]]) -> None:
        flat = {(n, o): run for n, orders in contestants.items() for o, run in orders.items()}
        runs = rounds(flat, given.repeats, watch=False)
        base = rate(runs["webdataset", "sequential"]) if "webdataset" in found else None
        rows = []
        for name, orders in contestants.items():
            row = [name]
            for order in ("sequential", "shuffled"):
                one = rate(runs[name, order]) if order in orders else None
                row.append("" if one is None else f"{one:,.0f}")
                row.append("" if one is None or base is None else f"{one / base:.1f}")
            rows.append([*row, f"{cpu_ms(runs[name, 'sequential']) * 1e3:,.0f}"])
        print(f"{title}, samples/s; times: webdataset's iterator in sequence\n")
        heads = ("reader", "sequential", "times", "shuffled", "times", "CPU µs/sample, sequential")
        print(markdown(heads, rows), flush=True)

    both = ("sequential", "shuffled")
    if "raw" in sections:
        warm = {
            name: {order: reader(name, order, "--seconds", given.seconds) for order in both}
            for name in readers
        }
        del warm["tarfile"]["shuffled"]  # it knows no other order than the tar's
        limit = {"cat of the shards (the limit)": {"sequential": cat()}}
        table(f"Raw samples, {count:,} in the page cache", limit | warm)
    if "cold" in sections:
        files = [path for path in root.rglob("*") if path.is_file()]
        if not hasattr(os, "RWF_NOWAIT") or forgotten(files) < _COLD:
            print("Cold files: left out, as this file system keeps them in memory.\n")
            return
        cold = {
            name: {order: emptied(reader(name, order), root) for order in both} for name in readers
        }
        del cold["tarfile"]["shuffled"]
        limit = {"cat of the shards (the limit)": {"sequential": emptied(cat(), root)}}
        table(f"Raw samples, {count:,} not in the page cache", limit | cold)


def place(root: Path, name: str) -> Path:
    """The folder that a contestant reads."""
    if name in ("files", *_OWN_FILES):
        return root / name
    return root / ("coco" if name in ("folder", "folder-pil", "jpeg") else "shards")


def emptied(run: Callable[[bool], Run], root: Path) -> Callable[[bool], Run]:
    def cold(watch: bool) -> Run:
        evict([path for path in root.rglob("*") if path.is_file()])
        return run(watch)

    return cold


def evict(files: list[Path]) -> None:
    """Has the kernel forget files."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not yet written stays
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def forgotten(files: list[Path]) -> float:
    """The share of files that the kernel can be made to forget.

    They are those that a read without waiting does not get; it has the kernel begin to read them.
    """
    evict(files)
    away = 0
    for path in files:
        with path.open("rb") as file:
            try:
                os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
            except OSError as error:  # others: a file system that cannot tell
                away += isinstance(error, BlockingIOError)
    return away / len(files)


def decode(root: Path, found: list[str], given: Any) -> None:
    """Images a second from JPEG to batches."""
    loaders = ["jpeg", "folder", "folder-pil", *found, "autotimm"]
    contestants = {}
    for workers in (0, 2):
        for name in loaders[workers > 0 :]:
            python = sys.executable if name == "autotimm" else given.peers_python
            words = (name, place(root, name), "--workers", workers)
            contestants[name, workers] = contestant(
                HERE / "loaders.py", *words, "--batch-size", given.batch_size, python=python
            )
    runs = rounds(contestants, given.repeats, watch=not given.quick)
    usual = {w: max(rate(runs[n, w]) for n in ("folder", "folder-pil")) for w in (0, 2)}
    rows = []
    for name in loaders:
        row: list[str] = [_NAMES.get(name, name)]
        for workers in (0, 2):
            if (name, workers) not in runs:
                row += [""] * 4
                continue
            one = runs[name, workers]
            peak = one[0].peak
            row += [f"{rate(one):,.0f}", f"{rate(one) / usual[workers]:.2f}", f"{cpu_ms(one):.2f}"]
            row.append("" if peak is None or name == "jpeg" else f"{peak / 1e6:,.0f}")
        handed = runs[name, 0][0].more["bytes"]
        rows.append([*row, f"{handed / 1e6:.2f}" if handed else ""])
    count = json.loads((root / "coco" / "annotations" / "instances_train.json").read_bytes())
    print(
        f"JPEG to augmented, normalised 640 px batches of {given.batch_size} with boxes and masks, "
        f"{len(count['images']):,} images; times: the faster COCO folder; memory is of all "
        "processes\n"
    )
    heads = [f"{what}, {w}" for w in ("0 workers", "2 workers") for what in (
        "images/s", "times", "CPU ms/image", "peak MB")]  # fmt: skip
    print(markdown(("loader", *heads, "MB handed over an image"), rows), flush=True)


def start(folder: Path, given: Any, sections: list[str]) -> None:
    """Opening, resuming, planning, and the order's quality."""
    words = [HERE / "startup.py", folder, *(["--quick"] if given.quick else [])]
    told = json.loads(call(sys.executable, *words))
    shutil.rmtree(folder)
    if "start" in sections:
        rows = [
            (what, f"{first:.1f}", f"{then:.1f}") for what, (first, then) in told["start"].items()
        ]
        print(markdown(("start-up", "ms, first call", "ms, median of those after"), rows))
        plan = told["plan"]
        print(
            f"Planning an epoch of {plan['samples']:,} samples for rank 700 of 1,024: "
            f"{plan['seconds']:.2f} s, {plan['megabytes']:.0f} MB at most\n"
        )
    if "order" in sections:
        rows = [
            (name, f"{distance:.1%}", f"{meet:.2%}", f"{shards:.0f}")
            for name, (distance, meet, shards) in told["order"].items()
        ]
        heads = (
            "order of COCO's 118 shards",
            "median distance of a shard's neighbours, of the epoch",
            "neighbours that meet within 100 samples",
            "shards in 512 samples",
        )
        print(markdown(heads, rows), flush=True)


def damage(root: Path, found: list[str], given: Any) -> None:
    """How much damage is found, and how much passes in silence."""
    rows = []
    for name in [*found, "autotimm", "autotimm-verify"]:
        python = sys.executable if name.startswith("autotimm") else given.peers_python
        words = (HERE / "damage.py", name, place(root, name), "--trials", given.trials)
        told = json.loads(call(python, *words))
        row = [_NAMES.get(name, name)]
        for outcomes in told.values():
            rest = [f"{n} {what}" for what, n in outcomes.items() if n and what != "found"]
            row.append(", ".join([f"**{outcomes['found']}**", *rest]))
        rows.append(row)
    print(
        f"Damage found while reading, of {given.trials} each (lost: other samples than were "
        "written came without an error; harmless: all came, as the cut took padding alone)\n"
    )
    heads = ("reader", "flipped bits", "cuts at any byte", "cuts between samples")
    print(markdown(heads, rows), flush=True)


def call(*words: object) -> str:
    told = subprocess.run(list(map(str, words)), check=False, capture_output=True, text=True)
    if told.returncode:
        sys.exit(f"{' '.join(map(str, words))}\nended with {told.returncode}:\n{told.stderr}")
    return told.stdout


if __name__ == "__main__":
    main()
