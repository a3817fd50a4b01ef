"""The first step of ``autotimm evaluate --checkpoint``: detections of the model in all images."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from autotimm.cli.evaluate_flags import data_and_split
from autotimm.cli.parser import make_folder
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.data.whole import WholeImages
from autotimm.files import urls
from autotimm.inference.predict import Options, detector_of
from autotimm.streaming.store import Source
from autotimm.structures import InputError, PixelRange
from autotimm.tasks import load
from autotimm.training import evaluate


class Detected(NamedTuple):
    """What is known after the model of a checkpoint has looked at the data.

    Attributes:
        source: of the data.
        pixel_range: of its images.
        facts: about checkpoint and model, by the name of each fact.
    """

    source: Source
    pixel_range: PixelRange
    facts: dict[str, str]


def detect(args: argparse.Namespace, path: Path) -> Detected | None:
    """Runs the checkpoint's model on the data and writes what it finds to ``path``.

    Returns:
        What is known then on the first rank, which alone has all results; else None.

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
    if not first:
        return None
    facts = _facts(args.checkpoint, model, data.image_size)
    return Detected(data.source(split), data.preprocessing.pixel_range, facts)


def _facts(checkpoint: str, model: Any, image_size: tuple[int, int]) -> dict[str, str]:
    """What a reader of the evaluation may ask for later, when links lead elsewhere."""
    real = checkpoint if urls.kind(checkpoint) else os.path.realpath(checkpoint)
    step = re.fullmatch(r"step_(\d+)\.ckpt", Path(real).name)
    height, width = image_size
    return {
        "checkpoint": real,
        **({"step": f"{int(step[1]):,}"} if step else {}),
        "model": f"{type(model).__name__}, {model.settings.backbone}",
        "image size": f"{height} x {width}",
    }


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
