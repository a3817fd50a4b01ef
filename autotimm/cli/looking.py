"""Flags on how a model looks at images, which ``predict`` and ``evaluate`` share."""

from __future__ import annotations

import argparse
from typing import Any

from autotimm.cli.parser import reject_unused


def add_looking(group: Any) -> None:
    """Adds ``--tile``, ``--overlap`` and ``--flip`` to an argument group."""
    group.add_argument("--tile", type=int, metavar="PIXELS", help="cut larger images into tiles")
    group.add_argument(
        "--overlap",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="of a tile, that the next one covers too; with 0, objects stay cut",
    )
    group.add_argument("--flip", action="store_true", help="also detect in the mirror image")


def check_looking(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """InputError where one of them would have no effect."""
    if args.tile is None:
        reject_unused(parser, args, ("overlap",), "is for tiles: give --tile too")
