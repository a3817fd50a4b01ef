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
        "of several their sums. It can be called while a run goes on.",
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
    found = {}
    for given in dict.fromkeys(args.runs):
        path = Path(given)
        path = path / METRICS if path.is_dir() else path
        found[given] = read_curves(path)
        if not found[given]:
            raise InputError(f"{path} holds no losses, learning rates or AP of a run")
    visualize.save_png(args.out, draw(found))
    for given, curves in found.items():
        for name, (x, y) in curves.scores.items():
            best = int(y.argmax())
            print(f"{given}: highest {name} {y[best]:.3f} after epoch {x[best]:g}")
    print(args.out)
    return 0
