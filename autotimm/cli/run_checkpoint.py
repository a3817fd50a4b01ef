"""The first step of ``autotimm evaluate --checkpoint``: detections of the model in all images."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from autotimm.cli.evaluate_flags import data_and_split
from autotimm.cli.parser import make_folder
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.data.whole import WholeImages
from autotimm.inference.predict import Options, detector_of
from autotimm.streaming.store import Source
from autotimm.structures import InputError, PixelRange
from autotimm.tasks import load
from autotimm.training import evaluate


def detect(args: argparse.Namespace, path: Path) -> tuple[Source, PixelRange] | None:
    """Runs the checkpoint's model on the data and writes what it finds to ``path``.

    Returns:
        The source of the data and the pixel range of its images on the first rank, which alone has
        all results; else None.

    Raises:
        InputError: the checkpoint or the data cannot be used.
    """
    if args.accelerator == "gpu" and not torch.cuda.is_available():
        raise InputError("--accelerator gpu: there is no GPU here; leave the flag out for the CPU")
    # These loggers' remarks are about trainings.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    model = load.load(args.checkpoint, metrics=None)
    size = args.image_size or model.preprocessing.image_size
    if size is None:
        raise InputError(
            f"{args.checkpoint} does not say at what image size it was trained: give --image-size"
        )
    limit = model.settings.max_detections_per_image
    changes: dict[str, Any] = {"max_detections_per_image": max(limit, args.max_detections or 0)}
    if args.score_thresh is not None:
        changes["score_thresh"] = args.score_thresh
    model.hparams.update(changes)
    look = _look(args, model)
    module = WholeImages if look else InstanceSegmentationDataModule
    location, split = data_and_split(args)
    data = module(
        args.data or args.images[0],
        image_size=size,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        resize=model.preprocessing.resize,
        train_split=split,  # its categories are the labels; there may be no other split
        val_split=None,
        test_split=split,
        max_corrupt=1.0,  # an unreadable image is reported, and its objects count as missed
        pixel_range=args.pixel_range,  # else the model's
    )
    data.data_dir = location  # named files are no path, which is all that the constructor takes
    machine = {"accelerator": args.accelerator, "precision": args.precision}
    data.check("test")
    make_folder("--out", path.parent)
    first = evaluate.find_all(model, data, path, **machine, look=look)
    return (data.source(split), data.preprocessing.pixel_range) if first else None


def _look(args: argparse.Namespace, model: Any) -> Callable[[Any], Any] | None:
    """The function that predicts whole images in tiles or mirrored; None if no flag asks for it."""
    if args.tile is None and not args.flip:
        return None
    options = Options(
        batch_size=args.batch_size,
        image_size=args.image_size,
        tile=args.tile,
        overlap=args.overlap,
        flip=args.flip,
    )
    look = detector_of(model, options)
    return lambda batch: look(batch["pixels"])
