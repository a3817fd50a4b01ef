"""How much memory the verbs take for pictures that are small as files and large as pixels.

    PYTHONPATH=. python benchmarks/large_images.py [--out benchmarks/results/large_images.md]

Each verb works through the same few pictures twice: of 64 pixels a side, which costs what the model
and its libraries cost, and of 13,300 (a uniform PNG of half a megabyte that unfolds into 530 MB as
RGB). Memory is that of all processes together, shared pages counted once, at its peak.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import harness
from PIL import Image

from autotimm import InstanceSegmentor
from autotimm.checkpoints.storage import PlainCheckpointIO

CATEGORIES = [{"id": 1, "name": "disc"}]
MODEL = {"backbone": "resnet10t", "num_classes": 1, "pretrained": False, "compile_model": False}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=13_300, help="of the large pictures (13,300)")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--verbs", default="predict,evaluate,fit,shard,preview")
    parser.add_argument("--quick", action="store_true", help="two pictures of 500 pixels")
    parser.add_argument("--out", type=Path, help="a file to write the table to")
    options = parser.parse_args()
    if options.quick:
        options.side, options.images = 500, 2
    with tempfile.TemporaryDirectory() as name:
        text = report(options, Path(name))
    print(text)
    if options.out:
        options.out.write_text(text)


def report(options: argparse.Namespace, work: Path) -> str:
    sides = {"small": 64, "large": options.side}
    for name, side in sides.items():
        write_data(work / name, side, options.images)
    checkpoint = write_checkpoint(work / "model.ckpt")
    rows = []
    for verb in options.verbs.split(","):
        runs = [
            harness.command(*words(verb, work / name, checkpoint), images=options.images)(True)
            for name in sides
        ]
        small, large = ((run.peak or 0) / 1e9 for run in runs)
        cpu = (runs[1].cpu - runs[0].cpu) / options.images
        rows.append([verb, f"{small:.2f}", f"{large:.2f}", f"{large - small:.2f}", f"{cpu:.1f}"])
        print(*rows[-1], file=sys.stderr, flush=True)  # the next one may take minutes
    heads = ["peak GB", "64 pixels", f"{options.side:,} pixels", "more", "more CPU s a picture"]
    return f"# Large images\n\n{options.images} pictures\n\n{harness.markdown(heads, rows)}\n"


def write_data(folder: Path, side: int, count: int) -> None:
    """A COCO folder whose pictures are links to one file."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    first = folder / "images" / "0.png"
    Image.new("RGB", (side, side), (90, 120, 150)).save(first)
    for i in range(1, count):
        (first.parent / f"{i}.png").hardlink_to(first)
    third = side / 3
    square = [third, third, 2 * third, third, 2 * third, 2 * third, third, 2 * third]
    images = [
        {"id": i + 1, "file_name": f"{i}.png", "width": side, "height": side} for i in range(count)
    ]
    about = {"category_id": 1, "iscrowd": 0, "area": third**2, "bbox": [third] * 4}
    content = {
        "images": images,
        "categories": CATEGORIES,
        "annotations": [
            {"id": one["id"], "image_id": one["id"], "segmentation": [square], **about}
            for one in images
        ],
    }
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def write_checkpoint(path: Path) -> Path:
    """An untrained model of these categories."""
    model = InstanceSegmentor(**MODEL, score_thresh=0.3)  # type: ignore[arg-type]
    model.categories = CATEGORIES
    content = {
        "pytorch-lightning_version": "2.6.4",
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
    }
    model.on_save_checkpoint(content)
    PlainCheckpointIO().save_checkpoint(content, path)
    return path


def words(verb: str, data: Path, checkpoint: Path) -> list[object]:
    out = data.parent / f"{verb}_{data.name}"
    read = ("--checkpoint", checkpoint, "--out", out)
    more: dict[str, list[object]] = {
        "predict": [data / "images", *read, "--image-size", 256, "--format", "json"],
        "evaluate": ["--data", data, *read, "--image-size", 256, "--num-workers", 2],
        "fit": [
            *(f"--data.data_dir={data}", "--data.image_size=256", "--data.batch_size=2"),
            *("--data.num_workers=2", "--trainer.max_steps=2", "--trainer.limit_val_batches=0"),
            *(f"--model.init_args.{k}={str(v).lower()}" for k, v in MODEL.items() if k[0] != "n"),
            *("--trainer.accelerator=cpu", f"--trainer.default_root_dir={out}"),
        ],
        "shard": [data, out, "--workers", 2],
        "preview": ["--data", data, "--out", f"{out}.png", "--image-size", 256, "--samples", 4],
    }
    return [sys.executable, "-m", "autotimm", verb, *more[verb]]


if __name__ == "__main__":
    main()
