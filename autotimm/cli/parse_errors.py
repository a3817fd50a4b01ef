"""jsonargparse's messages about flags that it cannot parse, reworded for users.

Its ``ArgumentError`` speaks of keys such as ``fit.data.image_size`` and of Python types such as
``<class 'int'>``; a user needs the flag, the value, and what the value must be.
"""

from __future__ import annotations

import re

from autotimm.cli import flags, lightning_help

_KEY = r'Parser key "(?P<key>[^"]+)": '
_UNION = re.compile(
    _KEY + r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\]"
    r" Errors: (?P<errors>.*) Given value type: .*? Given value: (?P<value>.*)"
)
_TYPE = re.compile(_KEY + r"Expected an? (?P<type>.+?)\. Got value: (?P<value>.*)")
_INNER = re.compile(
    r"Problem with given class_path '(?P<class>[^']+)': (?P<text>.*?)(?= - Expected|$)"
)


def reword(message: str) -> str:
    """The message in one line, with the flag's own name and value.

    A message of a kind that is not known here keeps its words.

    Args:
        message: of an ``ArgumentError`` of jsonargparse's; may have several lines.
    """
    text = " ".join(message.split())
    if text.startswith("the following arguments are required: "):
        missing = text.rpartition(": ")[2].split(", ")
        return f"{', '.join(f'--{_flag(key)}' for key in missing)} must be given"
    if text.startswith("unrecognized arguments: "):
        return f"{text}{flags.near_flag(text.split()[2].partition('=')[0], 'fit')}"
    if found := re.fullmatch(_KEY + r"File does not exist: '(?P<path>.*)'", text):
        return f"--{_flag(found['key'])} {found['path']}: no such file"
    if found := _UNION.match(text):
        key = _flag(found["key"])
        if inner := _INNER.search(found["errors"]):
            return _reword_class_argument(key, inner["class"], inner["text"])
        types = [name for name in _type_names(found[2]) if name != "None"]
        return f"--{key} {found['value']}: must be {' or '.join(types)}"
    if found := _TYPE.match(text):
        return f"--{_flag(found['key'])} {found['value']}: must be {_type_name(found['type'])}"
    return text


def _reword_class_argument(key: str, name: str, text: str) -> str:
    """The message about an argument of the class ``name``, which the flag ``--key`` chose."""
    if found := re.match(r"Option '(?P<name>[^']+)' is not accepted", text):
        near = flags.near_flag(f"--{key}.{found['name']}", "fit")
        return f"{name} has no {found['name']!r}{near}: --{key}.help={name} lists what it has"
    if found := _TYPE.match(text):
        flag = f"--{key}.init_args.{found['key']}"
        return f"{flag} {found['value']}: must be {_type_name(found['type'])}"
    return f"--{key}: {name}: {text}"


def _flag(key: str) -> str:
    """A key without the verb in front of it, if there is one."""
    verb, _, rest = key.partition(".")
    return rest if rest and verb in lightning_help.VERBS else key


def _type_name(text: str) -> str:
    """``B`` for ``<class 'a.B'>``."""
    name = re.sub(r"<class '(?:[^']*\.)?([^'.]+)'>", r"\1", text)
    return "None" if name == "NoneType" else name


def _type_names(text: str) -> list[str]:
    """The types of a list, split at the commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [_type_name(part.strip()) for part in parts]
