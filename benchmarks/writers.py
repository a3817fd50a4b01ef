"""One writer of shards, timed: ``python writers.py WRITER ANNOTATIONS IMAGES OUT [options]``.

Every writer begins with the annotation file read and grouped by image, and does the same for each
image: reads its file, makes the record (masks as compressed RLEs, by pycocotools in the peers),
writes both. Ours checks image and annotations and makes checksums on top. Processes share the
images evenly, and start when all of them are ready. No peer's code here imports autotimm.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from harness import measured

Work = Callable[[int, int], int]
"""(part, parts) -> images written."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("writer", choices=[*WRITERS, "stages"])
    for name in ("annotations", "images", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--samples-per-shard", type=int, default=250)
    parser.add_argument("--no-fsync", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    if options.no_fsync:
        os.fsync = lambda _: None  # type: ignore[assignment]  # how long is spent waiting for it?
    given = (options.annotations, options.images, options.out, options.samples_per_shard)
    if options.writer == "stages":
        from stages import stages

        print(json.dumps(stages(*given)))
        return
    start = time.perf_counter()
    work = WRITERS[options.writer](*given)
    loading = time.perf_counter() - start
    if options.writer == "litdata":
        measured(partial(work, 0, options.processes), loading=loading)
    elif options.processes == 1:
        measured(partial(work, 0, 1), loading=loading)
    else:
        together(work, options.processes, loading)


def together(work: Work, processes: int, loading: float) -> None:
    """Runs the parts of the work in forked processes, and times from the start of all on."""
    fork = multiprocessing.get_context("fork")
    ready, results = fork.Barrier(processes + 1), fork.SimpleQueue()

    def part(number: int) -> None:
        ready.wait()
        results.put(work(number, processes))

    started = [fork.Process(target=part, args=(number,)) for number in range(processes)]
    for process in started:
        process.start()

    def wait() -> int:
        ready.wait()
        for process in started:
            process.join()
            if process.exitcode:
                sys.exit(f"a process ended with {process.exitcode}")
        return sum(results.get() for _ in started)

    measured(wait, loading=loading)


def autotimm(
    annotations: Path, images: Path, out: Path, samples_per_shard: int, threads: bool = True
) -> Work:
    """``write_shard`` for every shard of the plan."""
    from autotimm.coco import index as coco
    from autotimm.sharding.plan import make_keys, plan_shards
    from autotimm.sharding.run import usable_cpus
    from autotimm.sharding.writer import write_shard

    index = coco.load(annotations, images)
    count = len(index)

    def work(part: int, parts: int) -> int:
        keys = make_keys((index.file_name(i), index.image_id(i)) for i in range(count))
        plan = plan_shards("train", keys, [0] * count, samples_per_shard, 2**62)
        thread = threads and 2 * parts <= usable_cpus()  # as autotimm-shard decides
        return sum(
            write_shard(out, shard, index, thread=thread).images for shard in plan[part::parts]
        )

    return work


def webdataset(annotations: Path, images: Path, out: Path, samples_per_shard: int) -> Work:
    """webdataset's ShardWriter."""
    from webdataset import ShardWriter

    samples = read(annotations, images)

    def work(part: int, parts: int) -> int:
        chosen = samples[part::parts]
        pattern = f"{out}/{part}-%06d.tar"
        with ShardWriter(pattern, maxcount=samples_per_shard, maxsize=2**62, verbose=0) as writer:
            for path, record in chosen:
                data, text = convert(path, record)
                writer.write({"__key__": Path(path).stem, "jpg": data, "json": text})
        return len(chosen)

    return work


def mosaicml(
    annotations: Path,
    images: Path,
    out: Path,
    _samples_per_shard: int,
    hashes: Sequence[str] = (),
) -> Work:
    """mosaicml-streaming's MDSWriter, as it comes: shards of 64 MB, no hashes."""
    from streaming import MDSWriter

    samples = read(annotations, images)

    def work(part: int, parts: int) -> int:
        chosen = samples[part::parts]
        folder = str(out / str(part)) if parts > 1 else str(out)
        columns = {"jpg": "bytes", "json": "bytes"}
        with MDSWriter(out=folder, columns=columns, hashes=list(hashes)) as writer:
            for path, record in chosen:
                data, text = convert(path, record)
                writer.write({"jpg": data, "json": text})
        return len(chosen)

    return work


def litdata(annotations: Path, images: Path, out: Path, _samples_per_shard: int) -> Work:
    """litdata's ``optimize`` with chunks of 64 MB; it starts its processes itself."""
    from litdata import optimize

    samples = read(annotations, images)

    def work(_: int, processes: int) -> int:
        optimize(
            fn=_litdata_sample,
            inputs=samples,
            output_dir=str(out),
            chunk_bytes="64MB",
            num_workers=processes,
            start_method="fork",
            verbose=False,
        )
        return len(samples)

    return work


def _litdata_sample(sample: tuple[str, dict[str, Any]]) -> dict[str, bytes]:
    data, text = convert(*sample)
    return {"jpg": data, "json": text}


def read(annotations: Path, images: Path) -> list[tuple[str, dict[str, Any]]]:
    """What the peers start from: every image's path and its record, masks not yet converted."""
    content = orjson.loads(annotations.read_bytes())
    of_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    return [
        (f"{images}/{image['file_name']}", {**image, "annotations": of_image[image["id"]]})
        for image in content["images"]
    ]


def convert(path: str, record: dict[str, Any]) -> tuple[bytes, bytes]:
    """The bytes of a sample's image and of its record, each mask as a compressed RLE."""
    from pycocotools import mask as masks

    with open(path, "rb") as file:  # noqa: PTH123 (a Path would take longer than the rest)
        data = file.read()
    size = record["height"], record["width"]
    converted = []
    for annotation in record["annotations"]:
        segmentation = annotation["segmentation"]
        rles = masks.frPyObjects(segmentation, *size)
        rle = masks.merge(rles) if isinstance(rles, list) else rles
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
            rle = segmentation
        counts = rle["counts"]
        counts = counts.decode() if isinstance(counts, bytes) else counts
        rle = {"size": list(size), "counts": counts}
        converted.append({**annotation, "segmentation": rle})
        if isinstance(segmentation, list):
            converted[-1]["polygons"] = segmentation
    return data, orjson.dumps({**record, "annotations": converted})


WRITERS = {
    "autotimm": autotimm,
    "autotimm-no-thread": partial(autotimm, threads=False),
    "webdataset": webdataset,
    "mosaicml": mosaicml,
    "mosaicml-hashes": partial(mosaicml, hashes=["xxh64"]),
    "litdata": litdata,
}


if __name__ == "__main__":
    main()
