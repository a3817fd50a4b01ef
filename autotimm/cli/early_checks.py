"""Checks of the words after ``fit`` and similar verbs, made before torch is imported.

Invariants: what Lightning's parser takes passes; what is not understood here is left to it. A job
of several processes is left to the check of its set-up (``setup/check.py``), which has one process
print the line and the others end with it. Only where torchrun runs on one node does the first
process check words and the name of the run here: torchrun ends the others.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

from autotimm.cli import check_paths, flags
from autotimm.cli.check_config import Config, read_yaml
from autotimm.cli.flags import CONFIG, FlagError, check_value
from autotimm.cli.near_paths import near_config, near_use
from autotimm.structures import InputError

_NO_VALUE = re.compile(r"-h|--help|--print_config\b.*|--.*\.help\b.*")
_DEFAULT = "autotimm.InstanceSegmentor"
_LAUNCHED = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "RANK", "LOCAL_RANK")


def check(words: list[str], help_flag: str) -> None:
    """Checks words, values of numbers, configs and paths; of a launcher's process less or nothing.

    Args:
        words: the verb and what follows it.
        help_flag: the flag that lists all flags, for messages.

    Raises:
        InputError: one line about the first thing that is wrong.
    """
    launched = any(name in os.environ for name in _LAUNCHED)
    if launched and not _is_first_on_one_node():
        return
    settings = check_words(words, help_flag)
    if settings is not None and launched:
        check_paths.check_run_name(settings, f"torchrun-{os.environ['TORCHELASTIC_RUN_ID']}")
    elif settings is not None:
        check_paths.check_run(words[0], settings, help_flag)


def _is_first_on_one_node() -> bool:
    """Whether this is the first process of a torchrun that has no other node."""
    expected = {"RANK": "0", "GROUP_WORLD_SIZE": "1"}
    known = "TORCHELASTIC_RUN_ID" in os.environ
    return known and all(os.environ.get(name) == value for name, value in expected.items())


def check_words(words: list[str], help_flag: str) -> dict[str, Any] | None:
    """Checks the words and the configs that they name, but no other path.

    Returns:
        The values by the names of the flags without dashes, such as ``data.data_dir``: those of
        flags as text. None if there may be more than is understood here.

    Raises:
        InputError: as in :func:`check`.
    """
    if not words or words[0] not in flags.table()["flags"]:
        return None
    if any(_NO_VALUE.fullmatch(word) for word in words):
        return None
    try:
        return _Words(words[0]).read(flags.expanded(words[1:]))
    except FlagError as error:
        line = flags.as_typed(str(error), words)
        raise InputError(f"{line} ({help_flag} lists the flags)") from error


class _Words:
    """Reads the words of one command line.

    Attributes:
        settings: what has been given so far, by names without dashes.
    """

    def __init__(self, verb: str) -> None:
        self._verb, self._known = verb, flags.flags_of(verb)
        self._model = _DEFAULT
        self.settings: dict[str, Any] = {}

    def read(self, words: list[str]) -> dict[str, Any] | None:
        if "--" in words:
            return None
        given, understood = self._pairs(words), True
        chosen = [value for name, value in given if name in ("--model", "--model.class_path")]
        self._model = chosen[-1] if chosen else _DEFAULT
        for name, value in given:
            if name == f"--{CONFIG}":
                understood &= self._read_config(value, bool(chosen))
            else:
                self.settings[name[2:]] = value
        _check_class(self._model)
        self._check_arguments(given)
        if any(self._known.get(f"--{name}") == CONFIG for name in self.settings):
            return None  # a config of the data or the trainer alone
        return self.settings if understood else None

    def _pairs(self, words: list[str]) -> list[tuple[str, str]]:
        """The flags by their full names, with their values."""
        found, rest = [], [*words]
        while rest:
            name, equals, value = rest.pop(0).partition("=")
            if name == "-c":
                name = f"--{CONFIG}"
            if not name.startswith("--"):
                near = near_use(name, {*self._known, *flags.SHORT})
                raise FlagError(f"unrecognized arguments: {name}{near}")
            name = self._full_name(name)
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise FlagError(f"argument {name}: expected one argument")
                value = rest.pop(0)
            check_value(name, value, self._known.get(name, ""))
            found.append((name, value))
        return found

    def _full_name(self, name: str) -> str:
        """A known flag of which ``name`` is the beginning, or ``name`` below a known one."""
        plain = name.removesuffix("+")
        if plain in self._known:
            return plain
        if any(plain.startswith(f"{one}.") for one, kind in self._known.items() if not kind):
            return plain  # of the model, of a callback, ...
        longer = [one for one in self._known if one.startswith(plain)]
        if len(longer) == 1:
            return longer[0]
        if longer:
            raise FlagError(f"ambiguous option: {name} could match {', '.join(longer)}")
        near = flags.near_flag(name, self._verb)
        raise FlagError(f"unrecognized arguments: {name}{near}")

    def _check_arguments(self, given: list[tuple[str, str]]) -> None:
        """Checks the flags ``--model.init_args.x`` and ``--model.x`` against the class."""
        name = self._model
        known = flags.arguments_of(name)
        if known is None:
            return
        for flag, value in given:
            head, _, rest = flag.partition(".")
            rest = rest.removeprefix("init_args.")
            if head != "--model" or rest in ("", "class_path", "init_args"):
                continue
            if (key := rest.partition(".")[0]) not in known:
                near = flags.suggestion(f"--model.{key}", [f"--model.{one}" for one in known])
                raise FlagError(f"{name} has no {key!r}{near}: --model.help={name} lists its own")
            check_value(flag, value, known[key])

    def _read_config(self, text: str, model_is_given: bool) -> bool:
        """Adds what a config file sets; returns whether it was understood."""
        path = Path(text)
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|~|-$", text) or re.search(r"[{\n\0]|: ", text):
            return False  # a URL, a home folder, stdin, or the content itself
        if not path.exists():
            raise FlagError(f"--{CONFIG} {text}: no such file{near_config(text)}")
        if path.is_dir():
            raise FlagError(f"--{CONFIG} {text}: is a folder, not a file")
        if not path.is_file():
            return False  # a pipe, which can be read once
        sections = {name[2:].rpartition(".")[0] for name in self._known} - {""}
        found = Config(text, read_yaml(text), self._known, sections)
        model = found.values.get("model.class_path", found.values.get("model"))
        if isinstance(model, str) and not model_is_given:
            self._model = model
        found.check_arguments(model if isinstance(model, str) else self._model)
        self.settings.update(found.values)
        return True


def _check_class(name: str) -> None:
    """Checks a name of the model's class that can only be meant for one of ours.

    Raises:
        InputError: there is none of that name.
    """
    known = flags.table()["classes"]
    if flags.arguments_of(name) is not None or "/" in name or not name.isprintable():
        return
    home, _, last = name.rpartition(".")
    near = difflib.get_close_matches(last, [one.rpartition(".")[2] for one in known], 1)
    if home == "autotimm" or (not home and near):
        hint = f"did you mean autotimm.{near[0]}?" if near else f"there are {', '.join(known)}"
        raise InputError(f"--model {name}: there is no such class: {hint}")
