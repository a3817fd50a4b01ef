"""``autotimm preview``: one picture of samples with each augmentation applied to them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from autotimm.cli.check_paths import check_data
from autotimm.cli.notes import note
from autotimm.cli.parser import add_image_size, add_pixel_range, local_path, make_parser
from autotimm.structures import InputError

if TYPE_CHECKING:
    from autotimm.augmentation.presets import Augmentation
    from autotimm.data.datamodule import InstanceSegmentationDataModule

_PRESETS = ("light", "default", "strong", "lsj")
_PLAIN = "as it is"  # the name of the column without augmentation


def parser() -> argparse.ArgumentParser:
    """The parser of the verb."""
    made = make_parser(
        "preview",
        "Draws training samples with their boxes, masks and class names: a row a sample, a column "
        "an augmentation, and one without any to compare.",
        """
        autotimm preview --data coco/ --out preview.png
        autotimm preview --data shards/ --preset strong lsj --samples 8 --out strong.png
        autotimm preview --data shards/ --preset lsj --copy-paste 1 --out pasted.png
        autotimm preview --data shards/ --resize stretch --image-size 512 --out a.png
        """,
    )
    made.add_argument(
        "--data", required=True, metavar="DIR", help="a COCO folder, a folder of shards or its URL"
    )
    made.add_argument(
        "--out", required=True, type=local_path, metavar="FILE.png", help="the picture to write"
    )
    made.add_argument(
        "--preset",
        nargs="+",
        choices=["all", *_PRESETS],
        help="augmentations to show: all, or some of light, default, strong, lsj (all)",
        metavar="NAME",
    )
    made.add_argument("--samples", type=int, default=4, metavar="N", help="rows")
    made.add_argument("--split", default="train", metavar="NAME", help="where the samples are from")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="chooses the samples")
    add_image_size(made, "side of the canvas in pixels, or its height and width", 640)
    made.add_argument(
        "--resize",
        choices=["letterbox", "stretch"],
        default="letterbox",
        help="keep the aspect and pad, or fill the canvas",
    )
    add_pixel_range(made, "default: that of the data")
    made.add_argument(
        "--copy-paste",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the samples onto which objects of another one are pasted, 0 to 1",
    )
    made.add_argument(
        "--multi-scale",
        action="store_true",
        help="draw each row's canvas, from 0.6 of the image size on (off)",
    )
    return made


def run(args: argparse.Namespace) -> int:
    """Writes the picture and prints which samples it shows."""
    check_data(args.data, "data_dir: ")
    import warnings
    from pathlib import Path

    from autotimm import visualize
    from autotimm.augmentation.presets import PRESETS, Augmentation, summary
    from autotimm.data.preview import sheet

    if Path(args.out).suffix.lower() != ".png":
        raise InputError(f"--out is {args.out}, but must end in .png")
    if args.samples < 1:
        raise InputError(f"--samples is {args.samples}, but must be 1 or more")
    wanted = args.preset or ["all"]
    presets = _PRESETS if "all" in wanted else tuple(dict.fromkeys(wanted))

    columns = {f"{_PLAIN}: {summary(Augmentation())}": _data(args, Augmentation())}
    changes = {"copy_paste": args.copy_paste, "multi_scale": args.multi_scale}
    for name in presets:
        columns[f"{name}: {summary(PRESETS[name])}"] = _data(args, name, **changes)
    left_out: set[str] = set()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "skipped, as it cannot be used")  # printed below
        picture, names = sheet(columns, args.samples, left_out=left_out)
    visualize.save_png(args.out, picture)
    print(f"{args.out}: {', '.join(names)}, each {', '.join([_PLAIN, *presets])}")
    print("each row is an image, each column an augmentation; fit trains with default, or with")
    print("the one that --data.augmentation_preset names")
    if left_out:
        more = f"; and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        which = "; ".join(sorted(left_out)[:3])
        note("preview", f"left out, as unusable: {len(left_out)}: {which}{more}")
    return 0


def _data(
    args: argparse.Namespace,
    augmentation: str | Augmentation,
    *,
    copy_paste: float = 0.0,
    multi_scale: bool = False,
) -> InstanceSegmentationDataModule:
    """The data that a column shows, with its augmentation."""
    from autotimm.data.datamodule import InstanceSegmentationDataModule

    return InstanceSegmentationDataModule(
        args.data,
        image_size=args.image_size,
        batch_size=1,
        num_workers=0,
        augmentation_preset=augmentation,
        resize=args.resize,
        train_split=args.split,
        val_split=None,
        seed=args.seed,
        copy_paste=copy_paste,
        multi_scale=multi_scale,
        pixel_range=args.pixel_range,
        max_corrupt=1.0,  # it draws the others, and the verb names what it cannot read
    )
