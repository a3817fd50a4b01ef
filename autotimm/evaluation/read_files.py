"""JSON files that evaluation reads whole: annotations and results, of any encoding and packing."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Any

from autotimm.coco.jsontext import NotJSONError, Text, parse
from autotimm.coco.lists import find_lists

_LONG = re.compile(rb"[:,\[\s]-?[0-9]{20}")  # 2**64 has 20 digits


def read_lists(path: str | Path) -> dict[str, list[Any]]:
    """The lists of an annotation file, found as those of a COCO folder's are.

    Raises:
        InputError: it cannot be read, or is none; names it.
    """
    text = Text(Path(path))
    exact = _LONG.search(text.read(text.begin, text.end - text.begin)) is not None
    try:
        return {
            key: [*chain.from_iterable(one.values(text, exact=exact))]
            for key, one in find_lists(text).items()
        }
    except NotJSONError:
        raise text.fault() from None


def read_json(path: str | Path) -> Any:
    """The content of a JSON file of any encoding that annotation files have.

    Raises:
        InputError: it cannot be read, or is not JSON; names it.
    """
    text = Text(Path(path))
    data = text.read(text.begin, text.end - text.begin)
    try:
        # The quick parser rounds whole numbers of more than 64 bits, which ids may have.
        return parse(data, exact=_LONG.search(data) is not None)
    except NotJSONError:
        raise text.fault() from None
