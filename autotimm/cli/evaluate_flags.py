"""Which flags of ``autotimm evaluate`` go together, and which data they name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from autotimm.cli.looking import check_looking
from autotimm.cli.parser import reject_unused
from autotimm.structures import InputError

if TYPE_CHECKING:
    from autotimm.files.urls import Location

_MOST_DETECTIONS = 1_000_000  # as coco_eval has it, whose import takes a second
_MOST_PICTURES = 500  # of a kind: each takes 4 MB of memory, and a tenth of it in report.html
_OF_MODEL = (
    *("image_size", "batch_size", "num_workers", "accelerator", "precision"),
    *("tile", "overlap", "flip", "score_thresh"),
)


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Checks flags that exclude each other, or have values that they cannot have.

    Raises:
        InputError: names the first one.
    """
    _check_sources(args)
    _check_numbers(args)
    if args.results:
        reject_unused(parser, args, _OF_MODEL, "is for --checkpoint: with --results no model runs")
    check_looking(parser, args)
    if args.annotations:
        reject_unused(parser, args, ("split",), "is for --data: leave it out, or give that")
    if args.annotations and not args.images:
        reason = "is for images: leave it out, or give --images or --data"
        reject_unused(parser, args, ("worst", "pixel_range"), reason)


def _check_sources(args: argparse.Namespace) -> None:
    """Checks which results are compared with which data, and that named files are there."""
    if bool(args.checkpoint) == bool(args.results):
        raise InputError("give --checkpoint, or --results for a file of results; one of the two")
    if bool(args.data) == bool(args.annotations):
        raise InputError("give --data, or --annotations for a COCO file; one of the two")
    if args.images and not args.annotations:
        raise InputError("--images: needs --annotations, whose images they are")
    if args.checkpoint and args.annotations and not args.images:
        raise InputError(
            "--annotations has no images for --checkpoint to look at: give --images, or --data"
        )
    if args.images:
        from autotimm.coco.named_files import paired  # NumPy: not for --help

        for file, folder in paired(args.annotations, args.images):
            if not Path(file).exists():
                raise InputError(f"--annotations: {file}: no such file")
            if not Path(folder).is_dir():
                raise InputError(f"--images: {folder}: no such folder")


def _check_numbers(args: argparse.Namespace) -> None:
    if not 0 <= args.min_score <= 1:
        raise InputError(f"--min-score {args.min_score:g} must be 0 to 1")
    for name, least in (("batch_size", 1), ("num_workers", 0), ("worst", 0)):
        if getattr(args, name) < least:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} {getattr(args, name)} must be at least {least}")
    if args.worst > _MOST_PICTURES:
        raise InputError(
            f"--worst {args.worst} must be at most {_MOST_PICTURES}: all pictures are on one page"
        )
    if args.max_detections is not None and not 10 <= args.max_detections <= _MOST_DETECTIONS:
        raise InputError(
            f"--max-detections {args.max_detections} must be 10 to {_MOST_DETECTIONS:,}"
        )
    if args.score_thresh is not None and not 0 <= args.score_thresh <= 1:
        raise InputError(f"--score-thresh {args.score_thresh:g} must be 0 to 1")


def data_and_split(args: argparse.Namespace) -> tuple[str | Location, str]:
    """Where the images are that ``--data`` or ``--images`` name, and which split is evaluated."""
    if not args.images:
        return args.data, args.split
    from autotimm.coco.named_files import joined_split
    from autotimm.streaming.layout import NamedFiles

    split = joined_split(args.annotations, args.images)
    return NamedFiles.of(split), split.name
