"""A hook of MkDocs: what the API page shows has docstrings, or the strict build fails."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig

ROOT = Path(__file__).parents[2]
log = logging.getLogger("mkdocs.hooks.docstrings")


def on_pre_build(config: MkDocsConfig) -> None:
    """Warns of every object without a docstring; ``strict`` makes an error of a warning."""
    options = config.plugins["mkdocstrings"].config.handlers["python"]["options"]
    hidden = [re.compile(one.removeprefix("!")) for one in options["filters"]]
    names = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    package = griffe.load("autotimm", search_paths=[ROOT])
    for name in names:
        for path in undocumented(package[name.removeprefix("autotimm.")], hidden):
            log.warning("%s: no docstring, or a parameter is missing in it, or Sphinx markup", path)


def undocumented(
    thing: griffe.Object | griffe.Alias, hidden: list[re.Pattern[str]]
) -> Iterator[str]:
    """The paths of what lacks words: the object itself, its parameters, or a public member."""
    if thing.is_alias:
        thing = thing.final_target
    if thing.docstring is None:
        yield thing.path
        return
    words = thing.docstring.value
    if ":`" in words:  # :func:`...`, which Markdown shows as it is
        yield thing.path
    function = thing.members.get("__init__") if thing.is_class else thing
    if function is not None and function.is_function:
        for parameter in function.parameters:
            named = re.search(rf"\b{parameter.name.lstrip('*')}\b.*:", words)
            if parameter.name not in ("self", "cls") and not named:
                yield f"{thing.path}({parameter.name})"
    for name, member in thing.members.items() if thing.is_class else ():
        shown = not any(pattern.search(name) for pattern in hidden)
        if shown and (member.is_function or "property" in member.labels):
            yield from undocumented(member, hidden)
