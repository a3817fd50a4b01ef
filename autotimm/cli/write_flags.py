"""Writes ``flags.json``: ``python -m autotimm.cli.write_flags`` after a change of an argument."""

from __future__ import annotations

import json
from argparse import Action
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from autotimm import InstanceSegmentor, ObjectDetector
from autotimm.cli import lightning_help
from autotimm.cli.flags import CONFIG, FILE, Table
from autotimm.cli.lightning_cli import OPTIONS, TrainCLI

_NAMES = {int: "int", float: "float", bool: "bool", NoneType: "None"}


class _Parsers(TrainCLI):
    """Makes the parsers, and parses and runs nothing."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        raise InterruptedError

    def flags(self) -> dict[str, dict[str, str]]:
        """By verb, what ``flags.json`` has of each."""
        return {verb: _flags(self.parser_of(verb)) for verb in self.subcommands()}


def make_table() -> Table:
    """What ``flags.json`` should hold."""
    made = _Parsers.__new__(_Parsers)
    try:
        made.__init__(**OPTIONS, args=[])  # type: ignore[misc]
    except InterruptedError:
        flags = made.flags()
    assert set(lightning_help.VERBS) <= set(flags)
    classes = {}
    for kind in (InstanceSegmentor, ObjectDetector):
        parser = LightningArgumentParser(exit_on_error=False)
        parser.add_class_arguments(kind, "of", fail_untyped=False)
        found = {name.removeprefix("--of."): value for name, value in _flags(parser).items()}
        classes[f"autotimm.{kind.__name__}"] = {
            name: value for name, value in found.items() if not name.startswith("--")
        }
    return Table(flags=flags, classes=classes)


def _flags(parser: LightningArgumentParser) -> dict[str, str]:
    return {
        name: _kind(action)
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--") and not name.endswith((".help", "+"))
    }


def _kind(action: Action) -> str:
    if action.dest == CONFIG or type(action).__name__ == "_ActionConfigLoad":
        return CONFIG
    hint: Any = getattr(action, "_typehint", None)
    parts = get_args(hint) or (hint,)
    names = [_NAMES[part] for part in parts if part in _NAMES]
    return " or ".join(names) if len(names) == len(parts) else ""


def main() -> None:
    """Writes the file beside this one."""
    text = json.dumps(make_table(), indent=1)
    Path(__file__).with_name(FILE).write_text(f"{text}\n")


if __name__ == "__main__":
    main()
