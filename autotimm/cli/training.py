"""The help of Lightning's verbs: examples and the flags of every day, out of some 140.

Lightning's own list takes seconds to make and 600 lines to print: ``--help-all`` has it.
"""

from __future__ import annotations

from typing import NamedTuple

from autotimm.cli.help import Parser, parser_of


class _Flag(NamedTuple):
    """A flag: its name, what stands for its value, its default (None: none), and its help."""

    name: str
    value: str
    default: str | int | float | None
    line: str


class _About(NamedTuple):
    """A verb: its line in the list of verbs, a sentence or two, and examples."""

    line: str
    summary: str
    examples: str


GROUPS = {
    "data": (
        _Flag("--data.data_dir", "DIR", None, "shards, their URL, or a COCO folder"),
        _Flag("--data.image_size", "PIXELS", 640, "side of the square canvas"),
        _Flag("--data.batch_size", "IMAGES", 4, "a step, on each GPU"),
        _Flag("--data.num_workers", "N", 4, "processes that decode, on each GPU"),
        _Flag("--data.augmentation_preset", "NAME", "default", "light, default, strong or lsj"),
    ),
    "model": (
        _Flag("--model.init_args.backbone", "NAME", "resnet50", "any of timm's with features"),
        _Flag("--model.init_args.lr", "RATE", 1e-4, "learning rate"),
        _Flag("--model.help", "CLASS", None, "lists all, e.g. of autotimm.InstanceSegmentor"),
    ),
    "run": (
        _Flag("--config", "FILE", None, "YAML with any of the flags; later ones win"),
        _Flag("--ckpt_path", "FILE", None, "checkpoint to go on from, or to measure"),
        _Flag("--trainer.max_epochs", "N", None, "epochs in all"),
        _Flag("--trainer.default_root_dir", "DIR", "runs", "where version_0, ... are made"),
        _Flag("--trainer.precision", "KIND", None, "32-true, 16-mixed, bf16-mixed, ..."),
        _Flag("--trainer.accelerator", "KIND", "auto", "cpu, gpu, ..."),
        _Flag("--trainer.devices", "N", "auto", "GPUs on each node"),
        _Flag("--trainer.num_nodes", "N", 1, "machines"),
        _Flag("--trainer.strategy", "NAME", "auto", "ddp, fsdp, deepspeed_stage_2, ..."),
        _Flag("--trainer.save_every_minutes", "MINUTES", None, "also save within an epoch"),
    ),
}
_CONFIG = "--config launch/small_cpu.yaml --data.data_dir shards/"
VERBS = {
    "fit": _About(
        "train a model",
        "Trains a model on shards or a COCO folder, on any number of GPUs.",
        f"""\
        autotimm fit {_CONFIG}
        autotimm fit --config launch/coco_r50_1x.yaml --data.data_dir shards/ --data.batch_size 8
        torchrun --standalone --nproc-per-node 8 -m autotimm fit --config launch/coco_r50_1x.yaml
        """,
    ),
    "validate": _About(
        "measure a checkpoint on the split to validate on, with fit's flags",
        "Measures a checkpoint on the split to validate on.",
        f"autotimm validate {_CONFIG} --ckpt_path best.ckpt",
    ),
    "test": _About(
        "measure a checkpoint on the split to test on, with fit's flags",
        "Measures a checkpoint on the split to test on, and writes what it finds there.",
        "autotimm test --config runs/version_0/config.yaml --data.test_split val --ckpt_path C",
    ),
    "find_lr": _About(
        "look for a learning rate to begin with",
        "Looks for the learning rate at which the loss falls fastest; keeps nothing.",
        f"autotimm find_lr {_CONFIG}",
    ),
    "find_batch_size": _About(
        "look for the largest batch that fits into memory",
        "Looks for the largest batch that fits into memory; keeps nothing.",
        f"autotimm find_batch_size {_CONFIG}",
    ),
}
"""Lightning's verbs."""

_LISTS = """\
--help-all lists all flags, --print_config shows their values: a config to begin with. What stands
in () holds where neither a flag nor the config says otherwise.
"""
_CODES = """
Exit codes: 0 done, 1 a process of the job was lost, 2 the input cannot be used, 85 stopped by a
signal after saving: the same command goes on.
"""


def parser(verb: str) -> Parser:
    """The parser of one of ``VERBS``, for its help and for completion: Lightning's own parses."""
    about = VERBS[verb]
    codes = _CODES if verb == "fit" else _CODES.partition(", 85")[0] + ".\n"
    made = parser_of(verb, about.summary, about.examples, _LISTS + codes)
    made.add_argument("--help-all", action="store_true", help="all flags (some seconds)")
    made.add_argument("--print_config", action="store_true", help="print all values, and end")
    for title, flags in GROUPS.items():
        group = made.add_argument_group(title)
        for flag in flags:
            if flag.name == "--ckpt_path" and verb.startswith("find_"):
                continue  # these begin anew
            group.add_argument(
                flag.name, dest=flag.name, metavar=flag.value, default=flag.default, help=flag.line
            )
    return made
