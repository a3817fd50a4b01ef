"""``autotimm predict``: detects objects in any images and videos; writes JSON and pictures."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import Any

from autotimm.cli.check_paths import check_checkpoint, check_images
from autotimm.cli.looking import add_looking, check_looking
from autotimm.cli.notes import note
from autotimm.cli.parser import (
    add_image_size,
    add_pixel_range,
    check_folder,
    local_path,
    make_parser,
    reject_unused,
)
from autotimm.structures import InputError

_COMPILE_FROM = 500  # images: compiling for a GPU takes a minute or two


def parser() -> argparse.ArgumentParser:
    """The parser of the verb."""
    flags = make_parser(
        "predict",
        "Finds objects in images of any kind and size, in their own pixels.",
        """\
        autotimm predict photo.jpg --checkpoint best.ckpt --out found/
        autotimm predict photos/ more/*.png https://host/a.jpg --checkpoint best.ckpt --out found/
        autotimm predict scan.tif --checkpoint best.ckpt --out found/ --tile 1024 --flip
        autotimm predict clip.mp4 --checkpoint best.ckpt --out found/ --every 5
        """,
        """\
        OUT gets results.json (COCO results, masks as RLE, with class names), images.json (the
        images and categories that its ids mean) and pictures/<name>.png; of a video
        videos/<name>.json (frames with their times in seconds) and videos/<name>.mp4.

        Images that cannot be used are reported and left out.
        Exit codes: 0 done, 1 some images could not be used, 2 nothing could be done.
        """,
    )
    flags.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="files, folders, 'patterns*.jpg', URLs; local videos",
    )
    flags.add_argument(
        "--checkpoint", required=True, metavar="FILE", help="a trained model: .ckpt or .safetensors"
    )
    flags.add_argument(
        "--out", required=True, type=local_path, metavar="DIR", help="made if it is missing"
    )
    flags.add_argument(
        "--format", choices=("json", "pictures", "both"), default="both", help="what to write"
    )
    flags.add_argument(
        "--min-score",
        type=float,
        metavar="SCORE",
        help="least, of detections to write; default: all",
    )
    flags.add_argument(
        "--draw-score",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="least, of detections to draw",
    )
    _add_model_flags(flags)
    _add_machine_flags(flags)
    return flags


def _add_model_flags(flags: argparse.ArgumentParser) -> None:
    how = flags.add_argument_group("how the model sees images")
    add_image_size(how, "the canvas: a side, or height and width; default: of the training")
    add_looking(how)
    add_pixel_range(how, "default: those of the training, else each image's own")
    how.add_argument(
        "--every", type=int, default=1, metavar="N", help="use every Nth frame of a video"
    )


def _add_machine_flags(flags: argparse.ArgumentParser) -> None:
    machine = flags.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    machine.add_argument("--half", action="store_true", help="float16 on a GPU, bfloat16 on a CPU")
    machine.add_argument("--batch-size", type=int, default=4, metavar="IMAGES", help="at once")
    machine.add_argument(
        "--compile",
        choices=("auto", "yes", "no"),
        default="auto",
        help=f"auto: on a GPU, from {_COMPILE_FROM} images on",
    )


def run(args: argparse.Namespace) -> int:
    """Predicts.

    Raises:
        InputError: flags or the checkpoint cannot be used, or there is no image.
    """
    _check(args)
    out = Path(args.out)
    names = _find(args, out)

    from autotimm.cli.predict_outputs import predict_images, predict_videos
    from autotimm.inference.predict import Options  # torch: what is missing has been said by now
    from autotimm.inference.sources import is_video
    from autotimm.inference.video import pyav

    options = Options(
        batch_size=args.batch_size,
        image_size=args.image_size,
        tile=args.tile,
        overlap=args.overlap,
        flip=args.flip,
        half=args.half,
        min_score=args.min_score,
        pixel_range=args.pixel_range,
    )
    videos = [one for one in names if is_video(one)]
    if videos:
        pyav()  # before the model is loaded
    else:
        reject_unused(parser(), args, ("every",), "is for videos: there is none")
    check_folder("--out", out)
    model = _model(args, _COMPILE_FROM if videos else len(names))
    images = [one for one in names if one not in set(videos)]
    if args.pixel_range is None:
        _warn_of_upper_bits(model, images)
    bad = predict_images(args, model, options, images) if images else 0
    bad += predict_videos(args, model, options, videos)
    if bad and videos:  # each line above counts one file, or the images
        print(f"{out}: left out in all: {bad:,} of {len(names):,} images and videos")
    if bad == len(names):  # nothing was written: files of an earlier run stay
        raise InputError("none of the images could be used")
    return 1 if bad else 0


def _check(args: argparse.Namespace) -> None:
    """Refuses flags that cannot be used, or not together."""
    for flag, value in (("--min-score", args.min_score), ("--draw-score", args.draw_score)):
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{flag} {value:g} must be 0 to 1")
    check_looking(parser(), args)
    if args.format == "json":
        reject_unused(parser(), args, ("draw_score",), "is for pictures: --format json writes none")
    if args.every < 1:
        raise InputError(f"--every {args.every} must be 1 or more")
    check_checkpoint(args.checkpoint)


def _find(args: argparse.Namespace, out: Path) -> list[str]:
    """The images and videos that the command names, without those that an earlier run drew."""
    from autotimm.inference.sources import find
    from autotimm.inference.write import PICTURES, VIDEOS, is_output

    # OUT may lie in a folder of IMAGES.
    drawn = {Path(os.path.realpath(out / one)) for one in (PICTURES, VIDEOS)}
    skipped: Counter[str] = Counter()
    every = find(args.images, skipped, is_output(out))
    names = [one for one in every if drawn.isdisjoint(Path(os.path.realpath(one)).parents)]
    if skipped:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in skipped.most_common())
        note("predict", f"skipped, as no images: {kinds}")
    if not names:
        raise InputError(f"there are no images but those in {out / PICTURES}")
    check_images(names)
    return names


def _warn_of_upper_bits(model: Any, names: list[str]) -> None:
    """Says what becomes of 16 bits with a checkpoint of an older version, if the first few images
    have them."""
    from autotimm.images.decode import DataError, deep_pixels
    from autotimm.structures import UPPER_BITS

    if model.preprocessing.pixel_range != UPPER_BITS:
        return
    for name in names[:16]:
        try:
            deep = Path(name).is_file() and deep_pixels(Path(name).read_bytes()) is not None
        except (OSError, DataError):  # reported when its turn comes
            continue
        if deep:
            note(
                "predict",
                "images of more than 8 bits a channel keep the upper 8 of 16, as the checkpoint is "
                "of an older version, which kept no range; --pixel-range LOW,HIGH sets other "
                "values",
            )
            return


def _model(args: argparse.Namespace, images: int) -> Any:
    import torch

    from autotimm.tasks.load import load

    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = next(iter(str(error).splitlines()), "")
        raise InputError(f"--device {device} is not available here: {why}") from error
    worth_it = device.startswith("cuda") and images >= _COMPILE_FROM
    compiled = args.compile == "yes" or (args.compile == "auto" and worth_it)
    model = load(args.checkpoint, device, metrics=None, compile_model=compiled, compile_kwargs=None)
    if args.min_score is not None:
        # score_thresh limits the class probability p; the score is sqrt(p * centerness) <= sqrt(p).
        limit = min(model.settings.score_thresh, args.min_score**2)
        model.hparams.update(score_thresh=limit)
    return model
