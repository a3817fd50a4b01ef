"""How fast is a COCO folder sharded? Ours and the peers' writers, interleaved, beside ``tar cf``.

    python benchmarks/shards.py
    python benchmarks/shards.py --data COCO_FOLDER --split val

The images are in the page cache, the output is removed before the next contestant begins and is
written to ``--work`` (give /dev/shm to leave the disk out). "alone" begins with the annotation file
read and grouped in memory, as the peers do; "command" is the whole of ``autotimm-shard``, from the
start of Python to its end, the annotation file included; taking off the start of Python and the
imports, which do not grow with the data, leaves "command, start taken off".
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import photos
from harness import Run, command, contestant, cpu_ms, machine, markdown, parser, peers, rate, rounds

from autotimm.coco import index as coco

WRITERS = Path(__file__).with_name("writers.py")
SHARDER = Path(sys.executable).with_name("autotimm-shard")
_NAMES = {
    "webdataset": "webdataset ShardWriter",
    "mosaicml": "mosaicml MDSWriter",
    "litdata": "litdata optimize",
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--split", default="train", help="of --data (train)")
    options.add_argument("--samples-per-shard", type=int, default=250)
    given = options.parse_args()
    if given.quick:
        given.images, given.repeats = min(given.images, 24), 1
    found = peers(given.peers, given.peers_python)
    print(machine(found, given.peers_python), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory(dir=given.work) as temporary:
        work = Path(temporary)
        split = photos.split_of(given.data, given.split, work, given.images, given.seed)
        data = given.data or work / "photos"
        paths = list_images(split, work / "images.txt")
        bench(data, split, paths, found, given, work)


def list_images(split: coco.Split, listing: Path) -> list[Path]:
    """The image files that are to be sharded; writes their list for tar, from the image folder."""
    index = coco.load(split.annotation_file, split.image_folder)
    listing.write_text("".join(f"{index.file_name(i)}\n" for i in range(len(index))))
    return [index.image_path(i) for i in range(len(index))]


def bench(
    data: Path, split: coco.Split, paths: list[Path], found: list[str], given: Any, work: Path
) -> None:
    """Measures and prints the tables."""
    out, count = work / "out", len(paths)
    total = sum(path.stat().st_size for path in paths)
    print(f"{count:,} images of {total / count / 1e3:.0f} kB, {given.repeats} rounds, medians\n")

    def clean(run: Callable[[bool], Run]) -> Callable[[bool], Run]:
        def cleaned(watch: bool) -> Run:
            shutil.rmtree(out, ignore_errors=True)
            subprocess.run(["sync"], check=True)  # nobody pays for what another wrote
            return run(watch)

        return cleaned

    def writer(name: str, processes: int, *more: str) -> Callable[[bool], Run]:
        python = sys.executable if name.startswith("autotimm") else given.peers_python
        words = (name, split.annotation_file, split.image_folder, out, "--processes", processes)
        size = ("--samples-per-shard", given.samples_per_shard)
        return clean(contestant(WRITERS, *words, *size, *more, python=python))

    def shell(text: str) -> Callable[[bool], Run]:
        return clean(command("sh", "-c", f"mkdir -p {out} && cd {split.image_folder} && {text}",
                             images=count))  # fmt: skip

    listing = work / "images.txt"
    ours = (SHARDER, data, out, "--splits", split.name)
    ours = (*ours, "--samples-per-shard", given.samples_per_shard)
    halves = f"split -n l/2 {listing} {work}/half-"
    contestants = {
        "cat (reading alone)": shell(f"xargs cat < {listing} > /dev/null"),
        "tar cf": shell(f"tar cf {out}/a.tar -T {listing}"),
        "tar cf, then sync": shell(f"tar cf {out}/a.tar -T {listing} && sync {out}/a.tar"),
        "tar cf, 2 processes": shell(
            f"{halves} && (tar cf {out}/a.tar -T {work}/half-aa & "
            f"tar cf {out}/b.tar -T {work}/half-ab; wait)"
        ),
        "autotimm alone, without fsync": writer("autotimm", 1, "--no-fsync"),
        "autotimm alone, without fsync or thread": writer("autotimm-no-thread", 1, "--no-fsync"),
        "autotimm alone": writer("autotimm", 1),
        "autotimm alone, 2 processes, without fsync or thread": writer(
            "autotimm-no-thread", 2, "--no-fsync"
        ),
        "autotimm alone, 2 processes": writer("autotimm", 2),
        "autotimm-shard --version": clean(command(SHARDER, "--version", images=count)),
        "autotimm-shard command": clean(command(*ours, "--workers", 1, images=count)),
        "autotimm-shard command, 2 workers": clean(command(*ours, "--workers", 2, images=count)),
    }
    for name in found:
        contestants[_NAMES[name]] = writer(name, 1)
        contestants[f"{_NAMES[name]}, 2 processes"] = writer(name, 2)
    runs = rounds(contestants, given.repeats, watch=not given.quick)
    start = runs.pop("autotimm-shard --version")
    for name in ("autotimm-shard command", "autotimm-shard command, 2 workers"):
        pairs = zip(runs[name], start, strict=True)
        runs[f"{name}, start taken off"] = [
            Run(count, max(a.seconds - b.seconds, 1e-9), max(a.cpu - b.cpu, 0.0), a.peak, {})
            for a, b in pairs
        ]
    tar = rate(runs["tar cf"])
    rows = [
        (name, f"{rate(r):,.0f}", f"{rate(r) / tar:.2f}", f"{cpu_ms(r):.3f}", megabytes(r[0]))
        for name, r in runs.items()
    ]
    print(markdown(("writer", "images/s", "of tar", "CPU ms/image", "peak MB"), rows))
    goals(runs)
    costs(split, out, given)


def megabytes(run: Run) -> str:
    return "" if run.peak is None else f"{run.peak / 1e6:,.0f}"


def goals(runs: dict[str, list[Run]]) -> None:
    """The ratios that the project promises, with what they are promised to be at least."""
    one, single = "autotimm alone, without fsync", "autotimm alone, without fsync or thread"
    two = "autotimm alone, 2 processes, without fsync or thread"
    asked = [
        ("to tar cf, without fsync", one, "tar cf", "0.60"),
        ("to tar cf with sync, with fsync", "autotimm alone", "tar cf, then sync", ""),
        ("to ShardWriter, neither with fsync", one, _NAMES["webdataset"], "1.60"),
        ("2 processes to 1, without fsync or thread", two, single, "1.70"),
        ("the same of tar: what the disk allows", "tar cf, 2 processes", "tar cf", ""),
    ]
    rows = [
        (
            what,
            f"{rate(runs[a]) / rate(runs[b]):.2f}",
            goal,
            f"{cpu_ms(runs[b]) / cpu_ms(runs[a]):.2f}",
        )
        for what, a, b, goal in asked
        if b in runs
    ]
    print(markdown(("autotimm alone", "images/s", "goal", "images per CPU second"), rows))


def costs(split: coco.Split, out: Path, given: Any) -> None:
    """What an image costs our writer, dearest first."""
    shutil.rmtree(out, ignore_errors=True)
    words = [WRITERS, "stages", split.annotation_file, split.image_folder, out]
    words += ["--samples-per-shard", given.samples_per_shard]
    told = subprocess.run(
        [sys.executable, *map(str, words)], check=True, capture_output=True, text=True
    )
    stages = sorted(json.loads(told.stdout).items(), key=lambda item: -item[1][1])
    rows = [
        (f"**{name}**" if rank < 3 else name, f"{cpu:.3f}", f"{wall:.3f}")
        for rank, (name, (cpu, wall)) in enumerate(stages)
    ]
    print("What an image costs our writer, each stage alone; the three largest are bold.\n")
    print(markdown(("stage", "CPU ms", "ms"), rows))


if __name__ == "__main__":
    main()
