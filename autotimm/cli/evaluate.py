"""``autotimm evaluate``: COCO AP of a checkpoint, or of a results file from any program."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotimm.cli import evaluate_flags as flags
from autotimm.cli.check_paths import check_checkpoint, check_data
from autotimm.cli.looking import add_looking
from autotimm.cli.notes import note
from autotimm.cli.parser import (
    add_image_size,
    add_pixel_range,
    check_folder,
    local_path,
    make_folder,
    make_parser,
)

if TYPE_CHECKING:
    from autotimm.evaluation.ground_truth import GroundTruth
    from autotimm.evaluation.truth import Truth
    from autotimm.streaming.store import Source
    from autotimm.structures import PixelRange


def parser() -> argparse.ArgumentParser:
    """The parser of the verb."""
    made = make_parser(
        "evaluate",
        "Box and mask AP at the original image size, as pycocotools computes it: all classes and "
        "class by class; curves, confusions and the worst images as pictures.",
        """\
        autotimm evaluate --checkpoint runs/last/checkpoints/best.ckpt --data shards/
        autotimm evaluate --results theirs.json --data coco/ --split val
        autotimm evaluate --results theirs.json --annotations instances_val2017.json
        autotimm evaluate --results theirs.json --annotations a.json --annotations b.json
        autotimm evaluate --checkpoint best.ckpt --annotations new.json --images photos/
        torchrun --nproc-per-node 8 -m autotimm evaluate --checkpoint best.ckpt --data shards/
        """,
        """\
        OUT gets report.html, a page of all of it for any browser, metrics.json,
        precision_recall.png, confusion.png and worst.png; with --checkpoint also results.json
        (COCO's format) and images.json (the images and categories that its ids mean). An
        images.json beside --results is used: its files are matched by name.

        Exit codes: 0 done, 2 the input cannot be used.
        """,
    )
    _add_source_flags(made)
    _add_model_flags(made)
    _add_picture_flags(made)
    return made


def _add_source_flags(made: argparse.ArgumentParser) -> None:
    source = made.add_argument_group("what to evaluate")
    source.add_argument(
        "--checkpoint", metavar="FILE", help="a trained model: .ckpt or .safetensors"
    )
    source.add_argument(
        "--results", metavar="FILE", help="a COCO results file, instead of --checkpoint"
    )
    source.add_argument("--data", metavar="DIR", help="COCO folder, shard folder or shard URL")
    source.add_argument("--split", default="val", help="the split of the data")
    source.add_argument(
        "--annotations",
        metavar="FILE",
        action="append",
        help="a COCO annotation file, instead of --data; repeat the flag to join several",
    )
    source.add_argument(
        "--images",
        metavar="DIR",
        action="append",
        help="the image folder of each of the --annotations, in their order, or one for all: "
        "needed with --checkpoint, and for pictures",
    )
    source.add_argument(
        "--boxes-only",
        action="store_true",
        help="compare boxes alone, even if the results have masks",
    )
    source.add_argument(
        "--max-detections",
        type=int,
        metavar="N",
        help="detect and count at most N objects of a class in an image; default: 100, as in COCO; "
        "for LVIS' files 300 of all classes together",
    )
    add_pixel_range(source, "default: the checkpoint's, else that of the data")
    source.add_argument(
        "--out", type=local_path, metavar="DIR", default="evaluation", help="made if it is missing"
    )


def _add_model_flags(made: argparse.ArgumentParser) -> None:
    model = made.add_argument_group("how the checkpoint is run")
    add_image_size(model, "a side, or height and width; default: of the training")
    add_looking(model)
    model.add_argument(
        "--score-thresh",
        type=float,
        metavar="SHARE",
        help="least class probability of a detection; default: the checkpoint's",
    )
    model.add_argument(
        "--batch-size", type=int, default=4, metavar="IMAGES", help="at once, on each rank"
    )
    model.add_argument(
        "--num-workers", type=int, default=2, metavar="N", help="processes that decode"
    )
    model.add_argument(
        "--accelerator", default="auto", choices=("auto", "cpu", "gpu"), help="where it runs"
    )
    model.add_argument(
        "--precision",
        choices=("16-mixed", "bf16-mixed", "32-true"),
        help="default: 16-mixed on a GPU, else 32-true",
    )


def _add_picture_flags(made: argparse.ArgumentParser) -> None:
    pictures = made.add_argument_group("pictures")
    pictures.add_argument(
        "--min-score",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="least, of detections to draw and to count as confusions; AP counts all",
    )
    pictures.add_argument(
        "--worst",
        type=int,
        default=12,
        metavar="IMAGES",
        help="of lowest F1, and suspect labels, to draw; at most 500",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates. Every rank of a job calls this; the first one writes and prints.

    Raises:
        InputError: flags or files cannot be used.
    """
    flags.check(parser(), args)
    out = Path(args.out)
    check_folder("--out", out)
    if args.checkpoint:
        check_checkpoint(args.checkpoint)
    if args.data:
        check_data(args.data)
    from autotimm.evaluation import coco_input, output, report

    given = _results(args, out)
    if given is None:
        return 0  # not the first rank
    results, source, pixel_range, of_model = given
    entries = coco_input.entries_of(results)
    truth, drawn = _truth(args, source, entries, pixel_range)
    make_folder("--out", out)
    if args.checkpoint:
        output.write_images(out, truth)
    entries, remarks = _fitted(args, results, entries, truth)
    if source and source.lacking and args.results:  # with a checkpoint, the data module has said it
        remarks.insert(0, source.lacking)
    measured = report.measure(
        truth,
        entries,
        args.min_score,
        boxes_only=args.boxes_only,
        max_detections=args.max_detections,
        name=str(results),
    )
    measured.remarks[:0] = remarks
    detected = (results.name, output.IMAGES) if args.checkpoint else ()
    output.write(measured, drawn, out, args.worst, _facts(args, of_model), detected)
    return 0


def _results(
    args: argparse.Namespace, out: Path
) -> tuple[Path, Source | None, PixelRange, dict[str, str]] | None:
    """The results file, the images if they are known, their pixel range, and facts of the model.

    A checkpoint first runs on the images, and writes the file; None on all ranks but the first.
    """
    if not args.checkpoint:
        return Path(args.results), _open_source(args), args.pixel_range, {}
    from autotimm.cli.run_checkpoint import detect

    results = out / "results.json"
    found = detect(args, results)
    return None if found is None else (results, *found)


def _fitted(
    args: argparse.Namespace, results: Path, entries: list[Any], truth: GroundTruth
) -> tuple[list[Any], list[str]]:
    """The entries under the ids of the truth, and what to know of them, a line each."""
    if args.checkpoint:
        empty = (
            "the model found no object on any image: it needs more training, or give a lower "
            "--score-thresh"
        )
        return entries, [] if entries else [empty]
    from autotimm.evaluation import matching

    if args.annotations and len(args.annotations) > 1:
        matching.refuse_clashing(results, truth)
    entries, lines = matching.fitted(entries, results, truth)
    return entries, [*lines] if entries else ["the results hold no detection"]


def _facts(args: argparse.Namespace, of_model: dict[str, str]) -> dict[str, str]:
    """What is evaluated, and on which day, for the head of the page."""
    given = {
        **of_model,
        "results": args.results,
        "data": args.data,
        "split": args.split if args.data else None,
        "annotations": ", ".join(args.annotations or ()),
        "images": ", ".join(args.images or ()),
        "date": datetime.now(UTC).date().isoformat(),
    }
    return {name: value for name, value in given.items() if value}


def _truth(
    args: argparse.Namespace, source: Source | None, entries: list[Any], pixel_range: PixelRange
) -> tuple[GroundTruth, Truth | None]:
    """What is to be found, and with ``--data`` or ``--images`` where its images are."""
    if source is None:
        from autotimm.evaluation import coco_input, truth_files

        return truth_files.of_files(args.annotations, coco_input.sizes_of(entries)), None
    from autotimm.evaluation.truth import Truth

    drawn = Truth(source, pixel_range)
    return drawn.truth, drawn


def _open_source(args: argparse.Namespace) -> Source | None:
    if args.annotations and not args.images:
        return None
    from autotimm.streaming.store import open_source

    data, split = flags.data_and_split(args)
    source = open_source(data, split)
    if source.remark:
        note("evaluate", f"{data}, split {split!r}: {source.remark}")
    return source
