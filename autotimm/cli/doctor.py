"""``autotimm doctor``: finds what would make a run fail or slow, and says what to do about it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from autotimm.cli.parser import local_path, make_parser
from autotimm.structures import InputError


def parser() -> argparse.ArgumentParser:
    """The parser of the verb."""
    flags = make_parser(
        "doctor",
        "Looks at what training needs: packages, GPUs, NCCL, shared memory, open files, CPUs, "
        "disks, pretrained weights, data, and whether a config suits them. Trains and downloads "
        "nothing.",
        """\
        autotimm doctor
        autotimm doctor --data shards/
        autotimm doctor --config launch/small_cpu.yaml --data shards/ --out runs/
        """,
        "Exit codes: 0 a run would begin, 1 something fails, 2 a flag cannot be used.",
    )
    flags.add_argument("--data", metavar="DIR", help="COCO folder, shard folder or shard URL")
    flags.add_argument("--config", metavar="FILE", help="YAML for fit; --data replaces its data")
    flags.add_argument(
        "--out",
        type=local_path,
        metavar="DIR",
        help="where runs will write (64 MiB, removed); default: the config's",
    )
    flags.add_argument("--json", action="store_true", help="for programs")
    return flags


def run(args: argparse.Namespace) -> int:
    """Prints what it finds; the exit code is 1 if a finding is a failure.

    Raises:
        InputError: the config cannot be read.
    """
    if args.config and not Path(args.config).is_file():
        raise InputError(f"--config: {args.config}: no such file")

    from autotimm.doctor import machine
    from autotimm.doctor import run as of_run
    from autotimm.doctor.weights import weights

    packages = machine.packages()
    found = [*packages, *machine.gpus(), *machine.limits()]
    trainer: dict[str, Any] = {}
    data: dict[str, Any] = {}
    model: dict[str, Any] | None = None
    if args.config:
        data, trainer, model = _settings(args.config, args.data)
    found += weights(model)
    location = args.data or data.get("data_dir")
    if location:
        found += of_run.data(str(location))
    if args.config:
        found += of_run.config(data, trainer)
    if args.out or args.config:
        found.append(machine.write_speed(Path(args.out or of_run.out_folder(trainer))))
    if args.json:
        print(json.dumps([one._asdict() for one in found], indent=2))
    else:
        _print_findings(found, len(packages))
    return 1 if any(one.level == "fail" for one in found) else 0


def _settings(
    config: str, data: str | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The arguments of the data module, the trainer and the model, as fit would read them."""
    from autotimm.cli.train import settings

    arguments = ["fit", "--config", config, *(["--data.data_dir", data] if data else [])]
    try:
        found = settings(arguments)
    except UnicodeDecodeError as error:
        raise InputError(f"--config: {config} is not UTF-8 text") from error
    # Only a fit makes these objects; neither the machine nor the data depend on them.
    module = {n: v for n, v in found["data"].items() if n != "custom_train_transforms"}
    if not isinstance(module.get("augmentation_preset"), str):
        module.pop("augmentation_preset", None)
    model = found["model"].get("init_args", {})
    if found.get("weights"):
        model["pretrained"] = False  # they have the backbone's, too
    return module, found["trainer"], model


def _print_findings(found: list[Any], packages: int) -> None:
    """Prints one line per finding, except that all packages without a problem share the first.

    Args:
        found: findings, those of packages first.
        packages: how many of them are of packages.
    """
    from rich.console import Console
    from rich.text import Text

    from autotimm.doctor.machine import Finding

    console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    sound = [one for one in found[:packages] if one.level == "ok"]
    names = ", ".join(f"{one.name} {one.text}" for one in sound if one.text[:1].isdigit())
    others = [f"{one.name} {one.text}" for one in sound if not one.text[:1].isdigit()]
    shown = [Finding("ok", "packages", "; ".join([names, *others]))]
    shown += [one for one in found if one not in sound]
    wide = max(len(one.name) for one in shown)
    for one in shown:
        line = Text(f"{one.level:5}", style=colours[one.level])
        console.print(line + Text(f"{one.name:{min(wide, 28)}}  {one.text}", style="default"))
        if one.remedy:
            console.print(Text(f"      -> {one.remedy}"))
    counts = {level: sum(one.level == level for one in shown) for level in colours}
    console.print(", ".join(f"{count} {level}" for level, count in counts.items()))
