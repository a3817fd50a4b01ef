"""What jsonargparse says of a flag that cannot be used, as a user would say it."""

from __future__ import annotations

import difflib
import re

from autotimm.cli import training

_KEY = r'Parser key "(?P<key>[^"]+)": '
_UNION = re.compile(
    _KEY + r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\]"
    r" Errors: (?P<errors>.*) Given value type: .*? Given value: (?P<value>.*)"
)
_TYPE = re.compile(_KEY + r"Expected an? (?P<kind>.+?)\. Got value: (?P<value>.*)")
_INNER = re.compile(
    r"Problem with given class_path '(?P<of>[^']+)': (?P<text>.*?)(?= - Expected|$)"
)


def plain(text: str) -> str:
    """The text in one line with the flag's own name and value; as it is where it is another kind.

    Args:
        text: below jsonargparse's usage, behind ``error: ``.
    """
    text = " ".join(text.split())
    if text.startswith("the following arguments are required: "):
        missing = text.rpartition(": ")[2].split(", ")
        return f"{', '.join(f'--{_flag(key)}' for key in missing)} must be given"
    if text.startswith("unrecognized arguments: "):
        return f"{text}{_near(text.split()[2])}"
    if found := re.fullmatch(_KEY + r"File does not exist: '(?P<path>.*)'", text):
        return f"--{_flag(found['key'])} {found['path']}: no such file"
    if found := _UNION.match(text):
        key = _flag(found["key"])
        if inner := _INNER.search(found["errors"]):
            return _inner(key, inner["of"], inner["text"])
        kinds = [kind for kind in _split(found[2]) if kind != "None"]
        return f"--{key} {found['value']}: must be {' or '.join(kinds)}"
    if found := _TYPE.match(text):
        return f"--{_flag(found['key'])} {found['value']}: must be {_kind(found['kind'])}"
    return text


def _inner(key: str, of: str, text: str) -> str:
    """What is wrong with an argument of a class that a flag names."""
    if found := re.match(r"Option '(?P<name>[^']+)' is not accepted", text):
        near = _near(f"--{key}.init_args.{found['name']}")
        return f"{of} has no {found['name']!r}{near}: --{key}.help={of} lists what it has"
    if found := _TYPE.match(text):
        name = f"--{key}.init_args.{found['key']}"
        return f"{name} {found['value']}: must be {_kind(found['kind'])}"
    return f"--{key}: {of}: {text}"


def _flag(key: str) -> str:
    """A key without the verb that may stand before it."""
    verb, _, rest = key.partition(".")
    return rest if rest and verb in training.VERBS else key


def _near(flag: str) -> str:
    known = [one.name for group in training.GROUPS.values() for one in group]
    found = difflib.get_close_matches(flag.partition("=")[0], known, 1, 0.8)
    return f" (did you mean {found[0]}?)" if found else ""


def _kind(text: str) -> str:
    """``<class 'a.B'>`` as ``B``."""
    name = re.sub(r"<class '(?:[^']*\.)?([^'.]+)'>", r"\1", text)
    return "None" if name == "NoneType" else name


def _split(text: str) -> list[str]:
    """Types of a list, by the commas that are in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [_kind(part.strip()) for part in parts]
