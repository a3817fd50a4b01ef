"""Short help for the verbs that Lightning's command line runs: examples and the everyday flags.

There are some 140 flags. Listing all of them takes seconds and 600 lines: ``--help-all`` does.
"""

from __future__ import annotations

from typing import NamedTuple

from autotimm.cli.parser import Parser, make_parser


class _Flag(NamedTuple):
    """A flag: its name, its metavar, its default (None if it has none), its line of help, and its
    short form (None if it has none)."""

    name: str
    metavar: str
    default: str | int | float | None
    line: str
    short: str | None = None


class _Verb(NamedTuple):
    """A verb: its line in the list of verbs, a sentence or two, and examples."""

    line: str
    summary: str
    examples: str


GROUPS = {
    "data": (
        _Flag("--data.data_dir", "DIR", None, "shards, their URL, or a COCO folder", "--data"),
        _Flag("--data.image_size", "PIXELS", 640, "side of the square canvas", "--image-size"),
        _Flag("--data.batch_size", "IMAGES", 4, "images in a step, on each GPU", "--batch-size"),
        _Flag("--data.num_workers", "N", 4, "processes that decode, on each GPU"),
        _Flag("--data.augmentation_preset", "NAME", "default", "light, default, strong or lsj"),
    ),
    "model": (
        _Flag(
            "--model.init_args.backbone",
            "NAME",
            "resnet50",
            "any of timm's that gives feature maps",
            "--model.backbone",
        ),
        _Flag("--model.init_args.lr", "RATE", 1e-4, "learning rate", "--model.lr"),
        _Flag("--model.help", "CLASS", None, "lists all, e.g. of autotimm.InstanceSegmentor"),
    ),
    "run": (
        _Flag("--config", "FILE", None, "YAML with any of the flags; later ones win"),
        _Flag("--ckpt_path", "FILE", None, "checkpoint to resume from, or to evaluate"),
        _Flag("--weights", "FILE", None, "trained weights to start from, of any classes"),
        _Flag("--trainer.max_epochs", "N", None, "epochs in all", "--epochs"),
        _Flag(
            "--trainer.patience", "N", None, "end after N validations without gain", "--patience"
        ),
        _Flag(
            "--trainer.default_root_dir",
            "NAME|DIR/",
            "runs",
            "the run's name, or the folder of runs",
            "--out",
        ),
        _Flag("--trainer.precision", "KIND", None, "32-true, 16-mixed, bf16-mixed, ..."),
        _Flag("--trainer.accelerator", "KIND", "auto", "cpu, gpu, ..."),
        _Flag("--trainer.devices", "N", "auto", "GPUs on each node", "--devices"),
        _Flag("--trainer.num_nodes", "N", 1, "machines"),
        _Flag("--trainer.strategy", "NAME", "auto", "ddp, fsdp, deepspeed_stage_2, ..."),
        _Flag("--trainer.save_every_minutes", "MINUTES", None, "also save within an epoch"),
    ),
}
_CONFIG = "--config launch/small_cpu.yaml --data shards/"
VERBS = {
    "fit": _Verb(
        "train a model",
        "Trains a model on shards or a COCO folder, on any number of GPUs.",
        f"""\
        autotimm fit {_CONFIG}
        autotimm fit --config launch/coco_r50_1x.yaml --data shards/ --batch-size 8
        torchrun --standalone --nproc-per-node 8 -m autotimm fit --config launch/coco_r50_1x.yaml
        """,
    ),
    "validate": _Verb(
        "measure a checkpoint on the split to validate on, with fit's flags",
        "Measures a checkpoint on the split to validate on.",
        f"autotimm validate {_CONFIG} --ckpt_path best.ckpt",
    ),
    "test": _Verb(
        "measure a checkpoint on the split to test on, with fit's flags",
        "Measures a checkpoint on the split to test on, and writes what it finds there.",
        "autotimm test --config runs/last/config.yaml --data.test_split val --ckpt_path C",
    ),
    "find_lr": _Verb(
        "look for a learning rate to begin with",
        "Looks for the learning rate at which the loss falls fastest; keeps nothing.",
        f"autotimm find_lr {_CONFIG}",
    ),
    "find_batch_size": _Verb(
        "look for the largest batch that fits into memory",
        "Looks for the largest batch that fits into memory; keeps nothing.",
        f"autotimm find_batch_size {_CONFIG}",
    ),
}
"""The verbs that Lightning's command line runs."""

_OF_CHECKPOINTS = {"--ckpt_path": ("fit", "validate", "test"), "--weights": ("fit", "find_lr")}
"""The verbs of the flags that not all of them have."""

_LISTS = """\
--help-all lists all flags, --print_config shows their values: a config to begin with. Values in ()
are defaults, for what neither a flag nor the config sets.
"""
_CODES = """
Exit codes: 0 done, 1 a process of the job was lost, 2 the input cannot be used, 85 stopped by a
signal after saving: the same command with --ckpt_path last goes on.
"""


def parser(verb: str) -> Parser:
    """A parser for the help and completion of one of ``VERBS``; Lightning's parses the flags."""
    described = VERBS[verb]
    codes = _CODES if verb == "fit" else _CODES.partition(", 85")[0] + ".\n"
    made = make_parser(verb, described.summary, described.examples, _LISTS + codes)
    made.add_argument("--help-all", action="store_true", help="all flags (some seconds)")
    made.add_argument("--print_config", action="store_true", help="print all values, and end")
    for title, flags in GROUPS.items():
        group = made.add_argument_group(title)
        for name, metavar, default, line, short in flags:
            if name in _OF_CHECKPOINTS and verb not in _OF_CHECKPOINTS[name]:
                continue
            names = [name] if short is None else [short, name]
            group.add_argument(*names, dest=name, metavar=metavar, default=default, help=line)
    return made
