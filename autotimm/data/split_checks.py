"""What is asked of one opened split before it is used: something to train on, and known classes."""

from __future__ import annotations

from autotimm.coco.federated import FEDERATED
from autotimm.coco.index import Category
from autotimm.images.decode import DataError, deep_pixels
from autotimm.streaming.store import Source
from autotimm.structures import InputError


def is_federated(source: Source) -> bool:
    """Whether the first image says which categories were looked for."""
    try:
        return FEDERATED[0] in source.record(0, 0)  # LVIS' lists are in every image
    except DataError:
        return False


def first_is_deep(source: Source) -> bool:
    """Whether the first image has more than 8 bits a channel."""
    try:
        return deep_pixels(source.read(0, 0)[0]) is not None
    except DataError:
        return False


def check_instances(source: Source, split: str) -> None:
    """Checks that a split has something to train on.

    Raises:
        InputError: it has no instances, or only crowds.
    """
    if not source.has_instances():
        raise InputError(
            f"{source.where(0)}: the {split!r} split has no instance that is not a crowd: there is "
            "nothing to train on" + (f"; {source.remark}" if source.remark else "")
        )


def check_categories(source: Source, training: list[Category], train_split: str) -> None:
    """Checks that the training split has all categories of a split, so that each has a label.

    Raises:
        InputError: a category is not in the training split.
    """
    known = {category.id: category.name for category in training}
    for category in source.categories:
        if known.get(category.id) != category.name:
            # autotimm-shard joins the categories of all splits, but refuses two names for one id.
            join = "" if category.id in known else ", or join them with autotimm-shard"
            raise InputError(
                f"{source.where(0)}: category {category.id} ({category.name!r}) is not in the "
                f"{train_split!r} split: give all splits the same categories{join}"
            )
