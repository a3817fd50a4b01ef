"""LVIS' lists of an image: which of the categories that it does not have were looked for in it."""

from __future__ import annotations

from typing import Any, Literal

from autotimm.coco.categories import CategoryIds
from autotimm.coco.checks import Problems, as_id
from autotimm.structures import brief

FEDERATED: tuple[Literal["neg_category_ids"], Literal["not_exhaustive_category_ids"]] = (
    "neg_category_ids",
    "not_exhaustive_category_ids",
)
"""LVIS' lists of an image, under its names: what was looked for and is not in it, and categories of
which not every instance is annotated (Gupta et al., 2019, arXiv:1908.03195)."""


def federated_lists(
    entry: dict[str, Any],
    categories: CategoryIds,
    problems: Problems,
    shown: str,
    exact: bool = True,
) -> dict[str, list[int]]:
    """The lists that the entry of an image has, with the ids of its file's categories.

    Args:
        entry: of the image, as its file has it.
        categories: of the file.
        problems: where ids of no category are counted, and what is no list.
        shown: what they call the image.
        exact: see ``ids.id_key``.

    Raises:
        InexactIdError: ``exact`` has to be True for this file.
    """
    found: dict[str, list[int]] = {}
    for key in FEDERATED:
        given = entry.get(key)
        if given is None:
            continue
        if not isinstance(given, list):
            problems.add(f"{key} is no list (left out)", shown)
            continue
        keys = [categories.find(one, exact)[0] for one in given]
        found[key] = [categories.ids[one] for one in keys if one in categories.ids]
        unknown = [raw for raw, one in zip(given, keys, strict=True) if one not in categories.ids]
        if unknown:
            kind = f"{key} has an id that no category of its file has (left out)"
            problems.add(kind, f"{brief(unknown[0])} of {shown}")
    return found


def as_stored(record: dict[str, Any]) -> dict[str, list[int]]:
    """The lists that a record has, whose ids are numbers already."""
    return {
        key: [id_ for id_ in map(as_id, record[key]) if id_ is not None]
        for key in FEDERATED
        if isinstance(record.get(key), list)
    }
