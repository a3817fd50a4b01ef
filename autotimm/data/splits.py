"""Whether the splits of a data set go together, and can be trained on."""

from __future__ import annotations

from autotimm.coco import Category
from autotimm.streaming.store import Source
from autotimm.structures import InputError


def check_instances(source: Source, split: str) -> None:
    """Sees that there is something to train on in a split.

    Raises:
        InputError: every instance is a crowd, or there is none.
    """
    if not source.has_instances():
        raise InputError(
            f"{source.where(0)}: the {split!r} split has no instance that is not a crowd: there is "
            "nothing to train on"
        )


def check_categories(source: Source, training: list[Category], train_split: str) -> None:
    """Sees that a split has only categories of the training split, so that each has a label.

    Raises:
        InputError: it has another one.
    """
    known = {category.id: category.name for category in training}
    for category in source.categories:
        if known.get(category.id) != category.name:
            # autotimm-shard joins the categories of its splits, but not two names of one id.
            join = "" if category.id in known else ", or join them with autotimm-shard"
            raise InputError(
                f"{source.where(0)}: category {category.id} ({category.name!r}) is not in the "
                f"{train_split!r} split: give all splits the same categories{join}"
            )
