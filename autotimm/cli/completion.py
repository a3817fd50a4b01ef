"""``autotimm completion SHELL``: a script with which a shell completes verbs, flags and paths.

shtab writes the script. For Lightning's verbs it covers the flags that ``autotimm fit --help``
lists: jsonargparse's link to shtab would cover all 140, but only in a script of its own, without
our other verbs, and a shell loads one script per command.
"""

from __future__ import annotations

import argparse

from autotimm.cli.parser import make_parser

# Metavars of arguments that are paths.
_FILES = ("FILE", "FILE.png", "IMAGE", "SRC DST")
_FOLDERS = ("DIR", "NAME|DIR/", "FOLDER")


def parser() -> argparse.ArgumentParser:
    """The parser of the verb."""
    flags = make_parser(
        "completion",
        "Prints a script with which the shell completes verbs, flags and paths.",
        """\
        autotimm completion bash > ~/.local/share/bash-completion/completions/autotimm
        autotimm completion zsh > ~/.zfunc/_autotimm    # with fpath+=~/.zfunc before compinit
        autotimm completion fish > ~/.config/fish/completions/autotimm.fish
        """,
    )
    flags.add_argument("shell", choices=("bash", "zsh", "fish"), help="which one")
    return flags


def run(args: argparse.Namespace) -> int:
    """Prints the script."""
    import shtab

    print(shtab.complete(_command(), args.shell))
    return 0


def _command() -> argparse.ArgumentParser:
    """One parser for the whole command, with a subparser for each verb, as shtab reads it."""
    import shtab

    from autotimm.cli.main import parser_of_verb, verb_lines

    # shtab's own expression for fish completes neither ~/file nor --flag=file.
    file = {**shtab.FILE, "fish": "(__fish_complete_suffix '')"}
    kinds = dict.fromkeys(_FILES, file) | dict.fromkeys(_FOLDERS, shtab.DIRECTORY)
    command = argparse.ArgumentParser("autotimm")
    command.add_argument("--version", action="store_true", help="print it")
    verbs = command.add_subparsers()
    for verb, line in verb_lines().items():
        flags = parser_of_verb(verb)
        for action in flags._actions:
            if kind := kinds.get(str(action.metavar)):
                action.complete = kind  # type: ignore[attr-defined]
        one = verbs.add_parser(verb, parents=[flags], add_help=False, help=line, description=line)
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return command
