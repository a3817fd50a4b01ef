"""CPU seconds of starts: importing the classes, `fit` up to its first step, and refused commands.

    python benchmarks/start.py [CHECKOUT ...] [--repeats N]

Without CHECKOUT this one is measured; with several, such as the build before beside this one, each
program runs on all of them in turn. The table has the medians, in CPU seconds of the process.
Python keeps compiled code, as it does for users: the first round may have to make it.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

OWN = Path(__file__).parents[1]
_TOLD = "import time; print('CPU', time.process_time())"
_CLASSES = "from autotimm import AutoTrainer, InstanceSegmentationDataModule, InstanceSegmentor"
_FIRST_STEP = """
import sys, time
from autotimm import InstanceSegmentor
def step(*_):
    print("CPU", time.process_time())
    raise SystemExit
InstanceSegmentor.training_step = step
from autotimm.cli.main import main
sys.argv[0] = "autotimm"
main()
"""
_REFUSED = """
import atexit, sys, time
atexit.register(lambda: print("CPU", time.process_time()))
from autotimm.cli.main import main
sys.argv[0] = "autotimm"
main()
"""
_FIT = ("fit", "--config", "launch/small_cpu.yaml", "--data.data_dir", "shards/sample")
_FIT += ("--data.image_size", "128", "--data.num_workers", "0")
_LIGHTNING, _FIT_STARTS = "import lightning.pytorch", "fit up to its first step"
PROGRAMS = {
    "import torch": (f"import torch; {_TOLD}",),
    _LIGHTNING: (f"import lightning.pytorch; {_TOLD}",),
    "import of the three classes": (f"{_CLASSES}; {_TOLD}",),
    _FIT_STARTS: (_FIRST_STEP, *_FIT),
    "a misspelt flag": (_REFUSED, *_FIT, "--data.batchsize", "2"),
    "shards that are not there": (_REFUSED, *_FIT, "--data.data_dir", "no/such/shards"),
    "a checkpoint that is not there": (_REFUSED, *_FIT, "--ckpt_path", "no/such.ckpt"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[OWN])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="once, to see that it runs")
    options = parser.parse_args()
    folders = [folder.resolve() for folder in options.checkouts]
    rounds = [one_round(folders) for _ in range(1 if options.quick else options.repeats)]
    print(f"| |{'|'.join(folder.name for folder in folders)}|\n|---|{'---:|' * len(folders)}")
    for name in PROGRAMS:
        medians = [statistics.median(one[name][i] for one in rounds) for i in range(len(folders))]
        print(f"| {name} | {' | '.join(f'{one:.2f}' for one in medians)} |")
    imports = [one["import of the three classes"][-1] / one[_LIGHTNING][-1] for one in rounds]
    print(f"\nimport of the classes as a share of Lightning's: {_ratios(imports)}")
    if len(folders) > 1:
        fits = [one[_FIT_STARTS][-1] / one[_FIT_STARTS][0] for one in rounds]
        print(f"start of fit in the last checkout as a share of the first: {_ratios(fits)}")


def one_round(folders: list[Path]) -> dict[str, list[float]]:
    """CPU seconds of each program in each checkout, one after the other."""
    return {
        name: [cpu_seconds(folder, code, words) for folder in folders]
        for name, (code, *words) in PROGRAMS.items()
    }


def _ratios(values: list[float]) -> str:
    every = ", ".join(f"{value:.2f}" for value in values)
    return f"median {statistics.median(values):.2f} of {every}"


def cpu_seconds(folder: Path, code: str, words: list[str]) -> float:
    """What the program says that it has used until then, in a process of its own."""
    env = {name: one for name, one in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as runs:
        if words:
            words = [*words, "--trainer.default_root_dir", runs]
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=folder,
            env=env | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    found = re.search(r"^CPU (\S+)$", done.stdout, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{code} {words}: {done.stdout}{done.stderr}")
    return float(found[1])


if __name__ == "__main__":
    main()
