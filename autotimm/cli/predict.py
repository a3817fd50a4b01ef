"""``autotimm predict``: detects objects in any images; writes COCO JSON and pictures."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from autotimm.cli.looking import add_looking, check_looking
from autotimm.cli.parser import add_image_size, add_pixel_range, make_parser, reject_unused
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
        """,
        """\
        OUT gets results.json (COCO results, masks as RLE, with class names), images.json (the
        images and categories that its ids mean) and pictures/<name>.png.

        Images that cannot be used are reported and left out.
        Exit codes: 0 done, 1 some images could not be used, 2 nothing could be done.
        """,
    )
    flags.add_argument(
        "images", nargs="+", metavar="IMAGE", help="files, folders, 'patterns*.jpg', URLs"
    )
    flags.add_argument(
        "--checkpoint", required=True, metavar="FILE", help="of a run: .ckpt or .safetensors"
    )
    flags.add_argument("--out", required=True, metavar="DIR", help="made if missing")
    flags.add_argument(
        "--format", choices=("json", "pictures", "both"), default="both", help="what is written"
    )
    flags.add_argument(
        "--min-score", type=float, metavar="SCORE", help="least, of what is found; default: all"
    )
    flags.add_argument(
        "--draw-score", type=float, default=0.5, metavar="SCORE", help="of what is drawn"
    )
    how = flags.add_argument_group("how images are looked at")
    add_image_size(how, "the canvas: a side, or height and width; default: of the training")
    add_looking(how)
    add_pixel_range(how, "default: those of the training, else each image's own")
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
    return flags


def run(args: argparse.Namespace) -> int:
    """Predicts.

    Raises:
        InputError: flags or the checkpoint cannot be used, or there is no image.
    """
    for flag, value in (("--min-score", args.min_score), ("--draw-score", args.draw_score)):
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{flag} {value:g} must be 0 to 1")
    check_looking(parser(), args)
    if args.format == "json":
        reject_unused(parser(), args, ("draw_score",), "is for pictures: --format json writes none")

    from autotimm.inference.predict import Options, predictions
    from autotimm.inference.sources import find
    from autotimm.inference.write import PICTURES, Writer

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
    out = Path(args.out)
    # OUT may lie in a folder of IMAGES: leave out what an earlier run drew there.
    drawn = Path(os.path.realpath(out / PICTURES))  # Path.resolve() fails on loops of links
    names = [one for one in find(args.images) if drawn not in Path(os.path.realpath(one)).parents]
    if not names:
        raise InputError(f"there are no images but those in {drawn}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: cannot make {out}: {error.strerror}") from error
    model = _model(args, len(names))
    writer = Writer(
        out,
        model.categories or [{"id": i, "name": n} for i, n in enumerate(model.class_names)],
        model.class_names,
        as_json=args.format != "pictures",
        draw_from=None if args.format == "json" else args.draw_score,
    )
    bad = 0
    try:
        found = predictions(model, names, options)
        for name, (pixels, detections) in zip(_with_progress(names), found, strict=True):
            if isinstance(pixels, InputError):
                bad += 1
                print(f"autotimm predict: left out: {pixels}", file=sys.stderr, flush=True)
            else:
                writer.add(name, pixels, detections)
    except BaseException:
        with contextlib.suppress(InputError):  # a full disk: the error that is on its way says so
            if writer.images:  # keep what was found before Ctrl-C
                writer.close()
        raise
    written = writer.close() if writer.images else []
    if bad == len(names):  # nothing was written: files of an earlier run stay
        raise InputError("none of the images could be used")
    kept = f"images: {len(writer.images):,}, instances: {writer.instances:,}"
    if args.format != "json":
        kept += f", of them drawn: {writer.drawn:,} (score from {args.draw_score:g})"
    print(f"{out}: {', '.join(written)}: {kept}{f'; {bad:,} left out' if bad else ''}")
    return 1 if bad else 0


def _model(args: argparse.Namespace, images: int) -> Any:
    import torch

    from autotimm.tasks.load import load

    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(f"--device {device} is not available here: {reason}") from error
    worth_it = device.startswith("cuda") and images >= _COMPILE_FROM
    compiled = args.compile == "yes" or (args.compile == "auto" and worth_it)
    model = load(args.checkpoint, device, metrics=None, compile_model=compiled, compile_kwargs=None)
    if args.min_score is not None:
        # score_thresh limits the class probability p; the score is sqrt(p * centerness) <= sqrt(p).
        limit = min(model.settings.score_thresh, args.min_score**2)
        model.hparams.update(score_thresh=limit)
    return model


def _with_progress(names: list[str]) -> Any:
    """The names, counted by a progress bar if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not console.is_terminal:
        return names
    return track(names, "predicting", console=console)
