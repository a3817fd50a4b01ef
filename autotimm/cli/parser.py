"""The parsers of the verbs: their help has a summary, examples, and every flag with its default."""

from __future__ import annotations

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from autotimm.cli.near_paths import near_use
from autotimm.files import urls
from autotimm.files.shortage import reason
from autotimm.near_names import unknown_flag
from autotimm.structures import InputError

_WIDTH = 98


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises a one-line InputError instead of printing and exiting."""

    def error(self, message: str) -> Any:
        raise InputError(f"{message} ({self.prog} --help lists the flags)")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, which first speaks of what is missing, where a flag may be misspelt."""
        words = [*(sys.argv[1:] if args is None else args)]
        known = self._option_string_actions
        unknown = unknown_flag(words, known)
        if unknown is not None:
            self.error(unknown)
        takes_words = any(not one.option_strings for one in self._actions)
        if words and not takes_words and not words[0].startswith("-"):
            self.error(f"unrecognized arguments: {words[0]}{near_use(words[0], known)}")
        return super().parse_args(words, namespace)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Appends the default to the help of each flag that has one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=_WIDTH)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        silent = default is None or default is False or default in (argparse.SUPPRESS, [])
        return text if silent or re.search(r"%\(default\)", text) else f"{text} (%(default)s)"


def make_parser(verb: str, summary: str, examples: str, epilog: str = "") -> Parser:
    """A parser whose help begins with the examples.

    Args:
        verb: the word after ``autotimm``.
        summary: a sentence or two on what it does.
        examples: command lines, one per line.
        epilog: the text below the flags: exit codes, formats.
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


def local_path(text: str) -> str:
    """The path of a file or folder to write, for ``type=`` of a flag; a file URL becomes a path.

    Raises:
        ArgumentTypeError: it is another URL, which would become a folder of that name.
    """
    kind = urls.kind(text)
    if kind == "file":
        return str(urls.file_path(text))
    if kind:
        raise argparse.ArgumentTypeError(
            f"{urls.shown(text)}: is a URL, but is written on this machine: give a path"
        )
    return text


def check_folder(flag: str, out: Path) -> None:
    """Raises an InputError if no folder can be made at ``out``; makes none.

    A verb makes its folder once its inputs are checked, but this fails before they are read.
    """
    there = next(one for one in (out, *out.absolute().parents) if os.path.lexists(one))
    if not there.is_dir():
        raise InputError(f"{flag}: cannot make {out}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{flag}: cannot make {out}: {there} is read-only")


def make_folder(flag: str, out: Path) -> None:
    """Makes a folder for the output of a verb, unless it exists.

    Raises:
        InputError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag}: cannot make {out}: {reason(error)}") from error


class _Size(argparse.Action):
    """Stores one side as a number, and height and width as a pair."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        if len(values) > 2:
            parser.error(f"{option} takes one side, or height and width")
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


def add_image_size(flags: Any, help: str, default: int | None = None) -> None:  # noqa: A002
    """Adds ``--image-size``, one side or height and width, to a parser or an argument group."""
    flags.add_argument(
        "--image-size",
        type=int,
        nargs="+",
        action=_Size,
        metavar="PIXELS",
        default=default,
        help=help,
    )


class _Range(argparse.Action):
    """Stores LOW,HIGH as two numbers."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        from autotimm.images.depth import checked_range

        setattr(namespace, self.dest, checked_range(str(option), values))


def add_pixel_range(flags: Any, default: str) -> None:
    """Adds ``--pixel-range LOW,HIGH`` to a parser or an argument group."""
    flags.add_argument(
        "--pixel-range",
        action=_Range,
        metavar="LOW,HIGH",
        help="values that become black and white in images of more than 8 bits a channel whose "
        f"files do not declare their bits; {default}",
    )


def reject_unused(
    parser: argparse.ArgumentParser, args: argparse.Namespace, names: Iterable[str], reason: str
) -> None:
    """Rejects flags that would have no effect together with the other flags given.

    Args:
        parser: of the verb; a flag counts as given if its value is not the parser's default.
        args: what the parser returned.
        names: attributes of ``args``, such as ``image_size``.
        reason: why these flags have no effect, and the way out; follows the flag in the message.

    Raises:
        InputError: a flag was given; its message names the first one.
    """
    for name in names:
        if getattr(args, name) != parser.get_default(name):
            raise InputError(f"--{name.replace('_', '-')} {reason}")
