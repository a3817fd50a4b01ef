"""The flags of an annotation, crowd or to be ignored, under whatever key a tool writes them.

COCO's own are ``iscrowd`` and, of pycocotools, ``ignore``. Others write:

- ``isCrowd``, ``is_crowd``, also among ``attributes``, where datumaro and CVAT keep what
  their users add (a mapping, a list of pairs such as ``{"name": ..., "value": ...}``, or a list of
  the names that are set): the same flag;
- ``IsGroupOf``, ``isgroupof``, ``is_group_of``: that of Open Images for a box around more than five
  objects, which openimages2coco and FiftyOne hand on, and which the converters of those who train
  on them write as ``iscrowd``;
- ``ignored``: ``ignore``;
- ``difficult``: that of Pascal VOC. Its evaluation leaves these objects out, some converters write
  ``ignore`` for it, but others train on them. It has no one meaning, so it is counted and reported,
  not used;
- ``crowd``: the flag, or how many objects are in it. It is counted and reported, not used.

Invariant: ``iscrowd``, where an annotation has it, decides; another key that says otherwise is
counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, product
from typing import Any

_NAMES = ("name", "key", "label", "attribute")
"""Under which key tools write the name of an attribute that has a value."""
_FLAGS = {0: 0, 1: 1, "0": 0, "1": 1, "false": 0, "true": 1}


def as_flag(value: Any) -> int | None:
    """Returns a flag as 0 or 1, however it is written (true, "1", 1.0); None if it is neither."""
    if isinstance(value, str):
        value = value.strip().lower()
    return _FLAGS.get(value) if isinstance(value, str | int | float) else None


def settled(raw: dict[str, Any], odd: Callable[[str], object] = lambda _: None) -> dict[str, Any]:
    """Returns an annotation whose ``iscrowd`` and ``ignore`` say what its other keys do.

    Args:
        raw: as the COCO file has it.
        odd: called with the kind of each flag that was read, and of each that was not.
    """
    nested = raw.get("attributes")
    if _OTHERS.isdisjoint(raw) and (
        not nested or _NESTED.isdisjoint(key for key, _ in _attributes(nested))
    ):
        return raw
    found = [*_found(raw)]
    if raw.get("iscrowd") in (None, ""):
        said = {flag for _, meaning, flag in found if meaning in (_CROWD, _GROUP)}
        if len(said) == 1:
            key = next(key for key, meaning, _ in found if meaning in (_CROWD, _GROUP))
            odd(f"no iscrowd ({key}'s taken)")
            raw = {**raw, "iscrowd": said.pop()}
        elif said:
            odd("no iscrowd, and other keys contradict each other (none taken)")
        for key, meaning, flag in found:
            if meaning == _IGNORE and flag and raw.get("ignore") is None:
                odd(f"{key} is 1 (taken as ignore: 1)")
                raw = {**raw, "ignore": 1}
    crowd = as_flag(raw.get("iscrowd"))
    for key, meaning, flag in found:
        if (
            crowd is not None
            and flag != crowd
            and (meaning == _CROWD or (meaning, flag) == _IS_GROUP)
        ):
            odd(f"{key} is {flag}, but iscrowd {crowd} (iscrowd's taken)")
        ordinary = flag and not crowd and as_flag(raw.get("ignore")) != 1
        if ordinary and meaning in (_IGNORE, _UNCLEAR):
            odd(f"{key} is 1 (taken as an ordinary instance; ignore: 1 would leave it out)")
    return raw


_CROWD, _GROUP, _IGNORE, _UNCLEAR = range(4)
_IS_GROUP = (_GROUP, 1)  # a crowd need not be what Open Images calls a group


def _found(raw: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Yields the flags under other keys than COCO's: key, meaning, 0 or 1."""
    for key, value in raw.items():
        if key in _OTHERS and (flag := as_flag(value)) is not None:
            yield key, _MEANINGS[key], flag
    for key, value in _attributes(raw.get("attributes")):
        if key in _NESTED and (flag := as_flag(value)) is not None:
            yield f"attributes.{key}", _MEANINGS[key], flag


def _attributes(nested: Any) -> Iterator[tuple[str, Any]]:
    """Yields the names and values of attributes, whichever way a tool writes them."""
    if type(nested) is dict:
        yield from nested.items()
    elif type(nested) is list:
        for one in nested:
            if type(one) is dict and "value" in one:
                names = (one[key] for key in _NAMES if type(one.get(key)) is str)
                yield from ((name, one["value"]) for name in islice(names, 1))
            elif type(one) is dict and len(one) == 1:
                yield from one.items()
            elif type(one) is str:
                yield one, 1


def _spellings(*words: str) -> set[str]:
    """How programmers write a name: isCrowd, is_crowd, IsCrowd, IS-CROWD, ..."""
    title = [word.title() for word in words]
    cases = ([*words], title, [words[0], *title[1:]], [word.upper() for word in words])
    return {mark.join(case) for mark, case in product(("", "_", "-", " "), cases)}


_MEANINGS = {
    key: meaning
    for meaning, names in (
        (_CROWD, (("is", "crowd"),)),
        (_GROUP, (("is", "group", "of"), ("group", "of"))),
        (_IGNORE, (("ignore",), ("ignored",), ("is", "ignored"))),
        (_UNCLEAR, (("difficult",), ("is", "difficult"), ("crowd",))),
    )
    for name in names
    for key in _spellings(*name)
}
_NESTED = frozenset(_MEANINGS)
_OTHERS = _NESTED - {"iscrowd", "ignore"}
