"""Breaks runs on purpose, with real processes, and counts what survives.

    python benchmarks/faults.py [--repeats 10] [--only NAME ...] [--out FILE]

Each fault is tried on a model of one number that saves a checkpoint at every step. A try survives
if no step beyond the last whole checkpoint is lost, none is done twice, the end is bit for bit that
of an undisturbed run, or, where a run cannot go on, it ends with one line that names the file or
flag and the way out. What did not is in the column "found". A fault that this machine cannot show
(no root, no such file system) is listed as skipped.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # forks of a process with threads hang

import fault_disks
import fault_kills
import fault_live
import fault_places
import torch
from fault_disks import SkippedError

Fault = Callable[[Path, int], tuple[int, int, list[str]]]
FAULTS: list[Fault] = [
    *fault_kills.FAULTS,
    *fault_disks.FAULTS,
    *fault_places.FAULTS,
    *fault_live.FAULTS,
]
QUICK = [
    *("torchrun_killed_at_changes", "optimizer_of_a_file", "optimizer_of_a_folder"),
    *("last_ckpt_an_empty_folder", "run_json_of_other_types"),
]
HEAD = ["| fault | tried | survived | found |", "| --- | ---: | ---: | --- |"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [fault.__name__ for fault in FAULTS]
    parser.add_argument("--repeats", type=int, default=10, help="tries of a fault of chance")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="one try each of five cheap ones")
    parser.add_argument("--out", type=Path, help="a file to write the table to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = options.only or names
    if options.quick:
        options.repeats, chosen = 1, QUICK
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # one start is another user's
        for fault in FAULTS:
            if fault.__name__ in chosen:
                rows.append(row(fault, Path(folder), options.repeats))
                print(rows[-1], file=sys.stderr, flush=True)
    text = "\n".join([*HEAD, *rows, "", *sums(rows)])
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def row(fault: Fault, folder: Path, repeats: int) -> str:
    """A row of the table."""
    name = " ".join((fault.__doc__ or fault.__name__).split())
    try:
        tried, survived, found = fault(folder, repeats)
    except SkippedError as error:
        return f"| {name} | 0 | 0 | skipped: {error} |"
    # A case that stops with an error of its own has shown nothing.
    except Exception as error:
        traceback.print_exc()
        return f"| {name} | 1 | 0 | the case itself failed: {type(error).__name__} |"
    kinds = Counter(" ".join(one.split()).replace("|", "/")[-300:] for one in found)
    said = "; ".join(f"{one} ({n} x)" if n > 1 else one for one, n in kinds.items())
    return f"| {name} | {tried} | {survived} | {said} |"


def sums(rows: Sequence[str]) -> list[str]:
    cells = [[cell.strip() for cell in one.strip("|").split(" | ")] for one in rows]
    tried, survived = (sum(int(one[i]) for one in cells) for i in (1, 2))
    machine = f"{platform.system()} {platform.machine()}, torch {torch.__version__}"
    return [f"{len(rows)} faults, {tried} tries, {survived} survived ({machine})."]


if __name__ == "__main__":
    main()
