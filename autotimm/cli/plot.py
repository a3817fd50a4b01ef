"""``autotimm plot``: losses, learning rates and AP of one or several runs in one picture."""

from __future__ import annotations

import argparse

from autotimm.cli.parser import local_path, make_parser
from autotimm.structures import InputError


def parser() -> argparse.ArgumentParser:
    """The parser of the verb."""
    made = make_parser(
        "plot",
        "Draws how losses, learning rates and AP of runs went, over epochs: of one run all losses, "
        "of several their sums. A resumed run is drawn with the runs that it went on from. It can "
        "be called while a run goes on.",
        """
        autotimm plot runs/last --out plot.png
        autotimm plot runs/version_0 runs/version_1 --out both.png
        """,
    )
    made.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or its metrics.csv")
    made.add_argument(
        "--out", required=True, type=local_path, metavar="FILE.png", help="the picture to write"
    )
    return made


def run(args: argparse.Namespace) -> int:
    """Writes the picture and prints where the highest AP of each run was."""
    from pathlib import Path

    from autotimm import visualize
    from autotimm.outputs.curves import METRICS, draw, read_curves

    if Path(args.out).suffix.lower() != ".png":
        raise InputError(f"--out is {args.out}, but must end in .png")
    paths = {one: Path(one, METRICS) if Path(one).is_dir() else Path(one) for one in args.runs}
    folders = [path.parent for path in paths.values()]
    found = {}
    for given, path in paths.items():
        found[given] = read_curves(path, folders)
        if not found[given]:
            raise InputError(f"{path} holds no losses, learning rates or AP of a run")
    visualize.save_png(args.out, draw(found))
    for given, curves in found.items():
        for earlier, place in curves.resumed.items():
            print(f"{given}: goes on from {earlier} after epoch {place:.4g}")
        if curves.missing is not None:
            print(f"{given}: goes on from {curves.missing}, beside which there is no {METRICS}")
        for name, (x, y) in curves.scores.items():
            best = int(y.argmax())
            print(f"{given}: highest {name} {y[best]:.3f} after epoch {x[best]:g}")
    print(args.out)
    return 0
