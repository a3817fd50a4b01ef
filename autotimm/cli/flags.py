"""The flags of ``fit`` and the other verbs of Lightning's, known without importing it.

Lightning makes its parser from the signatures of our classes, and importing those takes seconds.
``flags.json`` has what that parser knows; ``python -m autotimm.cli.write_flags`` writes it again
after a change of an argument, and ``tests/cli/test_flags.py`` compares both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any, TypedDict

from autotimm import near_names
from autotimm.cli import lightning_help
from autotimm.structures import InputError
from autotimm.training.run_name import is_name

FILE = "flags.json"
CONFIG = "config"
"""The kind of a flag that takes a config file."""


class Table(TypedDict):
    """What ``flags.json`` holds.

    Attributes:
        flags: by verb, the kind of the value of each flag: ``int``, ``bool or int``, ... if it is a
            number or a truth value, ``config``, or "" for any other.
        classes: the same for the arguments of each class that ``--model`` takes.
    """

    flags: dict[str, dict[str, str]]
    classes: dict[str, dict[str, str]]


SHORT = {
    flag.short: flag.name
    for group in lightning_help.GROUPS.values()
    for flag in group
    if flag.short is not None
}
"""The long form of each short one. Both take ``-`` and ``_`` alike."""

_RUNS, _RUN_NAME = "--trainer.default_root_dir", "--trainer.run_name"
"""What ``--out`` means with a slash in its value, and without one."""

_OF_CLASS = re.compile(r"--model\.(?!(init_args|class_path|dict_kwargs|help)\b)")

_OTHER_NAMES = {
    "bs": "--batch-size",
    "checkpoint": "--ckpt_path",
    "gpus": "--devices",
    "imgsz": "--image-size",
    "learningrate": "--model.lr",
    "output": "--out",
    "resume": "--ckpt_path",
    "workers": "--data.num_workers",
}
"""What other programs call some of the flags."""


@cache
def table() -> Table:
    """The content of ``flags.json``."""
    text = resources.files("autotimm.cli").joinpath(FILE).read_text()
    loaded: Table = json.loads(text)
    return loaded


def flags_of(verb: str) -> dict[str, str]:
    """The flags of a verb, without the short forms, and the kinds of their values."""
    return table()["flags"][verb]


def arguments_of(name: str) -> dict[str, str] | None:
    """The arguments of a class that ``--model`` names; None for a class that is not ours."""
    known = table()["classes"]
    return known.get(name, known.get(f"autotimm.{name}"))


class FlagError(InputError):
    """An error whose line ends with the flag that lists all flags."""


def help_flag(prog: str | None) -> str:
    """The flag that lists all flags; ``autotimm VERB --help`` lists a few."""
    return "--help-all" if prog == "autotimm" else "--help"


def expanded(words: list[str]) -> list[str]:
    """The words with the long form of each short one, as Lightning's parser spells them.

    ``--model.x`` is short for ``--model.init_args.x`` with any argument of the model's class.

    ``--weights-only-fitting`` gets the value that this parser wants, and the height and width of
    ``--image-size 480 640`` become one value. ``--data FILE.yaml`` stays what it is to the parser:
    a config of the data alone. ``--out NAME`` names the run, and ``--out DIR/`` the folder of runs.
    """
    found: list[str] = []
    rest = [*words]
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        following = value if equals else (rest[0] if rest else "--")
        plain = name if name.startswith("--") else ""
        plain = "--" + plain[2:].replace("_", "-") if plain else name
        if plain == "--weights-only-fitting":
            bare = not equals and following.lower() not in ("true", "false")
            word = "--weights_only_fitting" + ("=true" if bare else equals + value)
        elif name == "--data" and re.search(r"\.(ya?ml|json)$|^\{", following):
            pass
        elif long := SHORT.get(plain, SHORT.get(name)):
            if long == _RUNS and is_name(following) and not following.startswith("--"):
                long = _RUN_NAME
            word = long + equals + value
            sides = [side for side in rest[:2] if side.isdecimal()]
            if plain == "--image-size" and not equals and len(sides) == 2:
                word, rest = f"{long}=[{sides[0]}, {sides[1]}]", rest[2:]
        elif _OF_CLASS.match(name):
            word = f"--model.init_args.{word.removeprefix('--model.')}"
        found.append(word)
    return found


def as_typed(line: str, words: Iterable[str]) -> str:
    """A line with the short forms that were typed in place of the long ones that it has."""
    typed = {word.partition("=")[0] for word in words if word.startswith("--")}
    for name in typed:
        long = SHORT.get(f"--{name[2:].replace('_', '-')}", SHORT.get(name))
        if long is None and _OF_CLASS.match(name):
            long = f"--model.init_args.{name.removeprefix('--model.')}"
        if long is not None and long not in typed:
            line = re.sub(rf"{re.escape(long)}(?![\w.])", name, line)
    return line


def suggestion(name: str, known: Iterable[str]) -> str:
    """As :func:`autotimm.near_names.suggestion`, which other programs' names for ours help."""
    names, dashes = [*known], "--" if name.startswith("--") else ""
    if other := _OTHER_NAMES.get(near_names.bare(name)):
        for one in (other, SHORT.get(other, other)):
            if (found := dashes + one.removeprefix("--")) in names:
                return f" (did you mean {found}?)"
    return near_names.suggestion(name, names)


def near_flag(name: str, verb: str) -> str:
    """`` (did you mean --x?)`` for a word that is no flag of ``verb``, else ``""``."""
    of_model = {f"--model.{one}" for each in table()["classes"].values() for one in each}
    known, short = flags_of(verb), [one for one, long in SHORT.items() if long in flags_of(verb)]
    ordered = [*known, *short] if "." in name else [*short, *known]
    return suggestion(name, [*ordered, "--model.lr", "--model.backbone", *sorted(of_model)])


def check_value(name: str, value: Any, kind: str) -> None:
    """Checks that a value is a number or truth value where only such can be meant.

    Raises:
        FlagError: it is not.
    """
    kinds = kind.split(" or ")
    if kind in ("", CONFIG) or any(_is(value, one) for one in kinds):
        return
    wanted = " or ".join(one for one in kinds if one != "None")
    raise FlagError(f"{name} {value}: must be {wanted}")


def _is(value: Any, kind: str) -> bool:
    text = str(value).strip().lower()
    if kind == "None":
        return value is None or text in ("", "~", "null", "none")
    if kind == "bool":
        return text in ("true", "false", "yes", "no", "on", "off", "y", "n", "0", "1")
    number = int if kind == "int" else float
    try:
        number(text)
    except ValueError:
        return kind == "int" and re.fullmatch(r"[-+]?0[xob][0-9a-f_]+", text) is not None
    return not isinstance(value, bool)
