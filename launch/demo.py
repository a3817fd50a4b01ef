"""The whole way on painted data: COCO folder -> shards -> training -> AP on unseen images, picture.

Every step is the command that a user would type; this file only strings them together and reads
what they leave behind. ``make demo`` runs it.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable


def main() -> None:
    """Run the demo; exits with the code of the first command that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder, emptied first")
    parser.add_argument("--processes", type=int, default=2, help="of the training run")
    parser.add_argument("--train", type=int, default=600, help="training images to paint")
    parser.add_argument("--val", type=int, default=40, help="unseen images to evaluate on")
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    # What torchrun would set, with a warning: two processes of many threads fight over the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    out: Path = options.out.resolve()
    _empty(out)
    run = out / "run"
    started = time.perf_counter()
    _call(
        "1. paint a COCO folder",
        *(PYTHON, "-m", "autotimm.data.synthetic", out / "coco", "--seed", "0"),
        *("--train", options.train, "--val", options.val, "--size", "[192, 192]"),
    )
    _call("2. shard it", Path(PYTHON).parent / "autotimm-shard", out / "coco", out / "shards")
    train = (
        *(PYTHON, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", options.processes, ROOT / "launch" / "train.py"),
    )
    since = time.perf_counter()
    _call(
        f"3. train on {options.processes} processes",
        *(*train, "fit", "--config", ROOT / "launch" / "demo.yaml"),
        *("--data.data_dir", out / "shards", "--trainer.default_root_dir", run),
        *("--trainer.max_epochs", options.epochs),
    )
    seconds = time.perf_counter() - since
    version = run / "version_0"
    _call(
        "4. evaluate on images it has not seen",
        *(*train, "test", "--config", version / "config.yaml"),
        *("--ckpt_path", version / "checkpoints" / "last.ckpt"),
    )
    speeds = _column(version / "metrics.csv", "train/images_per_second")
    tested = run / "version_1"
    values = {name: _column(tested / "metrics.csv", name)[-1] for name in _METRICS.values()}
    table = Table(title="autotimm demo: painted shapes, from random weights")
    for heading in (*_METRICS, "training s", "images/s", "whole demo s"):
        table.add_column(heading, justify="right")
    whole = time.perf_counter() - started
    row = [f"{value:.3f}" for value in values.values()]
    table.add_row(*row, f"{seconds:.0f}", f"{sorted(speeds)[len(speeds) // 2]:.1f}", f"{whole:.0f}")
    console = Console()
    console.print()
    console.print(table)
    (picture,) = (tested / "pictures").glob("*.png")
    console.print(f"predictions beside ground truth: {picture}", soft_wrap=True)
    console.print(f"checkpoint: {version / 'checkpoints' / 'last.ckpt'}", soft_wrap=True)


_METRICS = {
    "box AP": "test/box_mAP",
    "box AP50": "test/box_mAP_50",
    "mask AP": "test/mask_mAP",
    "mask AP50": "test/mask_mAP_50",
}


def _empty(out: Path) -> None:
    """Remove an earlier demo; leave any other folder alone."""
    if out.exists() and any(out.iterdir()) and not (out / ".autotimm-demo").exists():
        sys.exit(f"error: {out} is not empty and not an earlier demo: give another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / ".autotimm-demo").touch()


def _call(title: str, *command: object) -> None:
    words = [str(word) for word in command]
    print(f"\n{title}\n  $ {' '.join(words)}\n", flush=True)
    code = subprocess.run(words, check=False).returncode
    if code:
        sys.exit(code)


def _column(path: Path, name: str) -> list[float]:
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


if __name__ == "__main__":
    main()
