"""``autotimm export``: a checkpoint as ONNX, PyTorch program, or safetensors with a model card."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from autotimm.cli.check_paths import check_checkpoint
from autotimm.cli.parser import add_image_size, local_path, make_parser, reject_unused
from autotimm.redaction import redacted
from autotimm.structures import InputError

_SUFFIXES = (".onnx", ".pt2", ".safetensors")


def parser() -> argparse.ArgumentParser:
    """The parser of the verb."""
    flags = make_parser(
        "export",
        "Writes a checkpoint for other programs, by the suffix of --out: ONNX with masks end to "
        "end, PyTorch's exported program, or safetensors with a model card.",
        """\
        autotimm export --checkpoint best.ckpt --out model.onnx
        autotimm export --checkpoint best.ckpt --out model.onnx --dynamic
        autotimm export --checkpoint best.ckpt --out model.pt2 --image-size 640
        autotimm export --checkpoint best.ckpt --out model.safetensors --metrics out/metrics.json
        """,
        """\
        .onnx and .pt2 take image [B, 3, H, W] float32, RGB from 0 to 255, and give boxes
        [B, N, 4] in its pixels, labels [B, N] (-1: nothing), scores [B, N] and masks
        [B, N, H, W] uint8. They need no other preprocessing than to fit pictures to H x W.
        """,
    )
    flags.add_argument("--checkpoint", required=True, metavar="FILE", help="of a run")
    flags.add_argument(
        "--out",
        required=True,
        type=local_path,
        metavar="FILE",
        help="to write: .onnx, .pt2 or .safetensors",
    )
    graph = flags.add_argument_group(".onnx and .pt2")
    add_image_size(graph, "a side, or height and width; default: of the training")
    graph.add_argument(
        "--dynamic", action="store_true", help="any height and width of 256, 384, 512, ... 8192"
    )
    graph.add_argument(
        "--max-detections", type=int, metavar="N", help="of an image; default: the model's"
    )
    graph.add_argument(
        "--min-score", type=float, metavar="SCORE", help="least, of what is found; default: all"
    )
    weights = flags.add_argument_group(".safetensors")
    weights.add_argument(
        "--metrics", metavar="FILE", help="metrics.json of autotimm evaluate, for the card"
    )
    return flags


def run(args: argparse.Namespace) -> int:
    """Exports.

    Raises:
        InputError: flags or the checkpoint cannot be used, or a file cannot be written.
    """
    out = Path(args.out)
    _check(args, out.suffix)
    written = _safetensors(args, out) if out.suffix == ".safetensors" else _graph(args, out)
    print(f"written: {', '.join(map(str, written))}")
    return 0


def _check(args: argparse.Namespace, suffix: str) -> None:
    if suffix not in _SUFFIXES:
        raise InputError(f"--out {args.out}: the suffix must be one of {', '.join(_SUFFIXES)}")
    if suffix == ".safetensors":
        names = ("image_size", "dynamic", "max_detections", "min_score")
        reject_unused(parser(), args, names, "is for .onnx and .pt2, not for weights alone")
    else:
        reject_unused(parser(), args, ("metrics",), "is for the card of .safetensors")
    if args.dynamic and args.image_size:
        raise InputError("--image-size has no effect with --dynamic: leave one out")
    if Path(args.out).is_dir():
        raise InputError(f"--out {args.out} is a folder: give a file's name")
    if args.min_score is not None and not 0 <= args.min_score <= 1:
        raise InputError(f"--min-score {args.min_score:g} must be 0 to 1")
    if args.max_detections is not None and not 1 <= args.max_detections <= 1000:
        raise InputError(f"--max-detections {args.max_detections} must be 1 to 1000")
    check_checkpoint(args.checkpoint)


def _graph(args: argparse.Namespace, out: Path) -> list[Path]:
    from autotimm.export import write
    from autotimm.tasks.load import load

    if out.suffix == ".onnx":
        write.check_onnx()  # tracing takes minutes: fail before it
    limit = args.max_detections
    settings: dict[str, Any] = {} if limit is None else {"max_detections_per_image": limit}
    model = load(args.checkpoint, metrics=None, **settings)
    size = (0, 0) if args.dynamic else write.canvas(model, args.image_size)
    traced = write.program(model, size, dynamic=args.dynamic, min_score=args.min_score)
    if out.suffix == ".pt2":
        write.to_program(traced, out)
    else:
        facts = {
            "names": model.class_names,
            "category_ids": [one["id"] for one in model.categories or ()],
            "image_size": None if args.dynamic else list(size),
            "resize": model.preprocessing.resize,
            "interpolation": model.preprocessing.interpolation,
            "fill": list(model.preprocessing.fill),
            "pixel_range": model.preprocessing.pixel_range,
        }
        write.to_onnx(traced, out, facts)
    return [out]


def _safetensors(args: argparse.Namespace, out: Path) -> list[Path]:
    from autotimm.checkpoints.convert import convert
    from autotimm.export.card import MADE_BY, card, measured
    from autotimm.files.atomic import whole_file
    from autotimm.tasks.checkpoint import read_checkpoint
    from autotimm.tasks.load import load
    from autotimm.training.run_record import read_record

    metrics = None
    if args.metrics:
        try:
            metrics = json.loads(Path(args.metrics).read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"--metrics {args.metrics} cannot be read: {error}") from error
        if not isinstance(metrics, dict) or not measured(metrics):
            raise InputError(f"--metrics {args.metrics} is no metrics.json of autotimm evaluate")
    path = out.with_suffix(".md")
    if path.exists() and MADE_BY not in path.read_text(errors="replace"):
        raise InputError(f"{path} exists and is no model card: move it, or give another --out")
    convert(args.checkpoint, out)
    content = read_checkpoint(out)
    # The checkpoint lies in <run>/checkpoints/ or in the run's folder.
    parents = list(Path(args.checkpoint).resolve().parents)[:2]
    record = next(filter(None, map(read_record, parents)), {})
    text = card(
        out.name,
        load(out, metrics=None),
        record,
        metrics,
        pretrained=content["hyper_parameters"].get("pretrained", False),
        steps=content.get("global_step"),
    )
    with whole_file(path) as file:
        file.write(redacted(text).encode())
    return [out, path]
