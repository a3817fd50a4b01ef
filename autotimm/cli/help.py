"""Help that is read: what a verb does, examples to copy, then every flag with its default."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterable
from typing import Any

from autotimm.structures import InputError

_WIDTH = 98


class Parser(argparse.ArgumentParser):
    """argparse, but what is wrong is an InputError, which is one line."""

    def error(self, message: str) -> Any:
        raise InputError(f"{message} ({self.prog} --help lists the flags)")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Says the default of each flag that has one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=_WIDTH)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        silent = default is None or default is False or default in (argparse.SUPPRESS, [])
        return text if silent or re.search(r"%\(default\)", text) else f"{text} (%(default)s)"


def parser_of(verb: str, summary: str, examples: str, epilog: str = "") -> Parser:
    """A parser whose help begins with the examples.

    Args:
        verb: what stands behind ``autotimm``.
        summary: a sentence or two on what it does.
        examples: command lines, one a line.
        epilog: what stands below the flags: exit codes, formats.
    """
    wrapped = textwrap.fill(" ".join(summary.split()), _WIDTH)
    shown = textwrap.indent(textwrap.dedent(examples).strip(), "  ")
    return Parser(
        prog=f"autotimm {verb}",
        description=f"{wrapped}\n\nexamples:\n{shown}",
        epilog=textwrap.dedent(epilog).strip() or None,
        formatter_class=_Help,
        allow_abbrev=False,
    )


class _Size(argparse.Action):
    """One side, as a number, or height and width, as a pair."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        if len(values) > 2:
            parser.error(f"{option} takes one side, or height and width")
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


def add_image_size(flags: Any, help: str, default: int | None = None) -> None:  # noqa: A002
    """Adds ``--image-size`` to a parser or a group of it; it is a side, or height and width."""
    flags.add_argument(
        "--image-size",
        type=int,
        nargs="+",
        action=_Size,
        metavar="PIXELS",
        default=default,
        help=help,
    )


def refuse(
    flags: argparse.ArgumentParser, args: argparse.Namespace, names: Iterable[str], reason: str
) -> None:
    """Refuses flags that would have no effect beside the others.

    Args:
        flags: of the verb; a value other than the default was given.
        args: what it parsed.
        names: of the attributes, such as ``image_size``.
        reason: why they have none, and the way out.

    Raises:
        InputError: names the first flag.
    """
    for name in names:
        if getattr(args, name) != flags.get_default(name):
            raise InputError(f"--{name.replace('_', '-')} {reason}")
