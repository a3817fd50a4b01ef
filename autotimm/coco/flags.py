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
- ``crowd``: the flag, or how many objects are in it. It is counted and reported, not used;
- ``isbbox``: COCO Annotator's for a polygon that is a box. It is counted and reported, not used;
- ``deleted``, ``is_deleted``, ``isDeleted``, or a date in ``deleted_at``, ``deletedAt``,
  ``deleted_date``: databases of annotation tools keep what was deleted, with a mark, and their own
  exports leave it out. ``is_deleted`` here reads the mark.

COCO Annotator keeps in ``metadata`` what others keep in ``attributes``, CrowdHuman's converters in
``extra``, FiftyOne in ``tags``. Each may be JSON in quotes.

Invariant: ``iscrowd``, where an annotation has it, decides; another key that says otherwise is
counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice, product
from typing import Any

from autotimm.coco.jsontext import NotJSONError, parse

DELETED = "annotation is marked as deleted (left out)"
DELETED_IMAGE = "image is marked as deleted (image left out)"

_NAMES = ("name", "key", "label", "attribute")
"""Under which key tools write the name of an attribute that has a value."""
_FLAGS = {0: 0, 1: 1, "0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1}


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
    if _OTHERS.isdisjoint(raw) and not any(
        nested and not _NESTED.isdisjoint(key for key, _ in _attributes(nested))
        for nested in map(raw.get, _PLACES)
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
        if flag and meaning == _BOX:
            odd(f"{key} is 1, so its polygon is a box and no outline (kept, as a mask)")
        if ordinary and meaning in (_IGNORE, _UNCLEAR):
            odd(f"{key} is 1 (taken as an ordinary instance; ignore: 1 would leave it out)")
    return raw


def is_deleted(raw: dict[str, Any]) -> bool:
    """Whether an annotation, or an image, is marked as deleted."""
    if MARKS.isdisjoint(raw):
        return False
    flags = {as_flag(raw.get(key)) for key in MARKS - _DATES}
    return 1 in flags or (0 not in flags and any(raw.get(key) for key in _DATES))


_CROWD, _GROUP, _IGNORE, _UNCLEAR, _BOX = range(5)
_IS_GROUP = (_GROUP, 1)  # a crowd need not be what Open Images calls a group


def _found(raw: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Yields the flags under other keys than COCO's: key, meaning, 0 or 1."""
    for key, value in raw.items():
        if key in _OTHERS and (flag := as_flag(value)) is not None:
            yield key, _MEANINGS[key], flag
    for place in _PLACES:
        for key, value in _attributes(raw.get(place)):
            if key in _NESTED and (flag := as_flag(value)) is not None:
                yield f"{place}.{key}", _MEANINGS[key], flag


def _attributes(nested: Any) -> Iterator[tuple[str, Any]]:
    """Yields the names and values of attributes, whichever way a tool writes them."""
    if type(nested) is str:
        yield from _attributes(_of_text(nested))
    elif type(nested) is dict:
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


def _of_text(text: str) -> Any:
    """What JSON in quotes holds; or names, some with values, as Python and people write them."""
    try:
        return parse(text.encode("utf-8", "surrogatepass"))
    except NotJSONError:
        pairs = (re.split("[:=]", part, maxsplit=1) for part in re.split("[,;]", text))
        words = ([word.strip(" \t\n'\"{}[]()") for word in pair] for pair in pairs)
        return [{pair[0]: pair[1]} if len(pair) == 2 else pair[0] for pair in words]


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
        (_BOX, (("isbbox",), ("is", "bbox"))),
    )
    for name in names
    for key in _spellings(*name)
}
_NESTED = frozenset(_MEANINGS)
_OTHERS = _NESTED - {"iscrowd", "ignore"}
_PLACES = ("attributes", "metadata", "extra", "tags")
_DATES = frozenset(("deleted_at", "deletedAt", "deleted_date"))
MARKS = _DATES | {"deleted", "is_deleted", "isDeleted"}
