"""``autotimm completion SHELL``: a script with which a shell completes verbs, flags and paths."""

from __future__ import annotations

import argparse

from autotimm.cli.help import parser_of

_PATHS = {  # by what stands for a flag's value in the help
    "FILE": "file",
    "FILE.png": "file",
    "IMAGE": "file",
    "SRC DST": "file",
    "DIR": "directory",
    "FOLDER": "directory",
}


def parser() -> argparse.ArgumentParser:
    """The flags of the verb."""
    flags = parser_of(
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
    from autotimm.cli.main import lines, parser_of_verb

    verbs = {verb: (line, parser_of_verb(verb)) for verb, line in lines().items()}
    print(_fish(verbs) if args.shell == "fish" else _shtab(verbs, args.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments of a verb; its help is made anew by what they are added to."""
    return [one for one in parser._actions if not isinstance(one, argparse._HelpAction)]


def _shtab(verbs: dict[str, tuple[str, argparse.ArgumentParser]], shell: str) -> str:
    import shtab

    kinds = {"file": shtab.FILE, "directory": shtab.DIRECTORY}
    root = argparse.ArgumentParser("autotimm")
    root.add_argument("--version", action="store_true", help="print it")
    known = root.add_subparsers()
    for verb, (line, parser) in verbs.items():
        one = known.add_parser(verb, help=line, description=line)
        for action in _actions(parser):
            if str(action.metavar) in _PATHS:
                action.complete = kinds[_PATHS[str(action.metavar)]]  # type: ignore[attr-defined]
            one._add_action(action)
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return str(shtab.complete(root, shell))


def _fish(verbs: dict[str, tuple[str, argparse.ArgumentParser]]) -> str:
    """Fish takes a line a flag; shtab does not write them."""
    said = [
        "complete -c autotimm -f",
        "complete -c autotimm -n __fish_use_subcommand -l version -d 'print it'",
    ]
    for verb, (line, parser) in verbs.items():
        said.append(f"complete -c autotimm -n __fish_use_subcommand -a {verb} -d {_quoted(line)}")
        within = f"complete -c autotimm -n '__fish_seen_subcommand_from {verb}'"
        said.append(f"{within} -l debug -d 'show the traceback of an error'")
        said.append(f"{within} -l help -s h -d 'explain the verb'")
        for action in _actions(parser):
            said.append(" ".join([within, *_fish_words(action)]))
    return "\n".join(said)


def _fish_words(action: argparse.Action) -> list[str]:
    words = [f"-l {flag.removeprefix('--')}" for flag in action.option_strings]
    valued = action.nargs != 0
    if valued and str(action.metavar) in _PATHS:
        words.append("-r -F" if words else "-F")
    elif valued and action.choices:
        choices = _quoted(" ".join(map(str, action.choices)))
        words.append(f"-x -a {choices}" if words else f"-a {choices}")
    elif valued and words:
        words.append("-x")
    first = (action.help or "").split(";")[0].replace("%%", "%")
    return [*words, f"-d {_quoted(first)}"]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
