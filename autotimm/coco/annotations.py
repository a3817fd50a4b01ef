"""The annotations of a COCO file: which image each belongs to, and where in the file it lies.

Invariants: what belongs to no image or category is left out and counted by kind with examples; an
annotation's id is an integer that no other has. The list is read in pieces (``jsontext.py``), and
what is kept of an annotation is its place in the file.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from autotimm.coco.categories import CategoryIds
from autotimm.coco.checks import Problems, Rules, as_id, is_trained_on
from autotimm.coco.flags import DELETED, MARKS, as_flag, is_deleted, settled
from autotimm.coco.ids import FileNames, Key, free_ids, id_key, shifted, spelled
from autotimm.coco.jsontext import Array, Text
from autotimm.coco.lists import LEFT_OUT, ImageList
from autotimm.coco.patterns import Patterns
from autotimm.structures import InputError


class AnnotationIndex(NamedTuple):
    """The annotations that can be used, image after image: those of i are first[i]:first[i + 1].

    Attributes:
        first: [images + 1] int64.
        starts: [annotations] int64, offsets in the file.
        lengths: [annotations] int64, in bytes.
        renumbered: place -> the id that it gets.
        dense: share of the file's text that is no white space.
        span: the smallest and the largest annotation id; 0 and -1 without any.
        used: ids of the categories that have annotations.
        untrained: ids of the categories that have annotations, none of which is trained on.
        ignored: how many annotations say ``ignore: 1``.
    """

    first: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    renumbered: dict[int, int]
    dense: float
    span: tuple[int, int]
    used: list[int]
    untrained: list[int]
    ignored: int


def index_annotations(
    text: Text,
    listed: Array,
    slots: dict[Key | None, int],
    images: ImageList,
    names: FileNames,
    categories: CategoryIds,
    problems: Problems,
    rules: Rules,
    exact: bool,
) -> AnnotationIndex:
    """Assigns each annotation to its image, and a new id to those without one of their own.

    Args:
        text: the file.
        listed: its annotations.
        slots: from ``lists.find_images``.
        images: likewise.
        names: the places in ``slots`` by the images' names.
        categories: from ``categories.read_categories``.
        problems: where what is odd is counted.
        rules: which annotations are trained on.
        exact: see ``jsontext.parse``.

    Raises:
        InputError: there are annotations, but none that can be used; or they are of another kind.
        InexactIdError: ``exact`` has to be True for this file.
        NotJSONError: the annotations are not JSON.
    """
    patterns = Patterns(images.sizes)
    found = _assign(text, listed, slots, patterns, names, categories, problems, rules, exact)
    patterns.count(problems)
    known, used, unnumbered = categories.ids, found.used, found.unnumbered
    shift = shifted(found.strange, {one for one in found.categories if type(one) is int}, known)
    if shift is not None:
        problems.add(shift, f"category_id {min(found.strange)}")
    owner = np.frombuffer(found.owners, np.int64)
    order = np.argsort(owner, kind="stable")
    order = order[np.count_nonzero(owner == LEFT_OUT) :]
    if found.listed and not len(order):
        why = "; ".join(line for line in problems.lines() if line.startswith("annotation "))
        raise InputError(
            f"{text.path}: none of its {found.listed:,} annotations can be used: {why}"
        )
    place = np.empty(len(owner), np.int64)
    place[order] = np.arange(len(order))
    free = free_ids(used, len(unnumbered))
    count = max(slots.values(), default=LEFT_OUT) + 1
    sample = text.read(listed.begin, min(2**16, listed.end - listed.begin))
    return AnnotationIndex(
        first=np.searchsorted(owner[order], np.arange(count + 1)),
        starts=listed.starts[order],
        lengths=listed.lengths[order],
        renumbered={int(place[i]): new for i, new in zip(unnumbered, free, strict=True)},
        dense=len(b"".join(sample.split())) / max(len(sample), 1),
        span=_span(used, free),
        used=sorted(known[key] for key in found.categories),
        untrained=sorted(known[key] for key in found.categories - found.trained),
        ignored=found.ignored,
    )


class _Assigned(NamedTuple):
    """What the annotations of a file say, in its order.

    Attributes:
        listed: how many there are, with those that are no objects.
        owners: of each object the position of its image, or LEFT_OUT.
        used: the ids that they keep.
        unnumbered: the places in ``owners`` of those that need another id.
        categories: keys of the categories that have annotations.
        trained: keys of those of them that have annotations to train on.
        strange: ids that no category has.
        ignored: how many say ``ignore: 1``.
    """

    listed: int
    owners: array[int]
    used: set[int]
    unnumbered: list[int]
    categories: set[Key | None]
    trained: set[Key | None]
    strange: set[int]
    ignored: int


def _assign(
    text: Text,
    listed: Array,
    slots: dict[Key | None, int],
    patterns: Patterns,
    names: FileNames,
    categories: CategoryIds,
    problems: Problems,
    rules: Rules,
    exact: bool,
) -> _Assigned:
    """Reads the annotations, and finds the image of each; see ``index_annotations``."""
    owners = array("q")
    used: set[int] = set()
    unnumbered: list[int] = []
    trained: set[Key | None] = set()
    others: set[Key | None] = set()
    known = categories.ids
    strange: set[int] = set()
    ignored = 0
    position = -1
    for position, raw in enumerate(chain.from_iterable(listed.values(text, exact=exact))):
        if type(raw) is not dict:
            problems.add("annotation is not an object (left out)", f"annotations[{position}]")
            continue
        id_, image_id, category_id = raw.get("id"), raw.get("image_id"), raw.get("category_id")
        plain = type(id_) is type(image_id) is type(category_id) is int and abs(id_) < 2**63
        slot = slots.get(image_id) if plain else None
        # Numbers of 64 bits that no int64 holds are looked up by their text.
        if exact or slot is None or category_id not in known:
            id_, image_id = as_id(id_), id_key(image_id, exact)
            category_id, by_name = categories.find(category_id, exact)
            if by_name:
                shown = _shown(id_, image_id, position)
                problems.add("category_id is the category's name (its id taken)", shown)
            written = spelled(raw.get("image_id"))
            slot, by_file = _slot(image_id, written, slots, names)
            if by_file:
                shown = _shown(id_, written or image_id, position)
                problems.add("image_id is the image's file name (matched by it)", shown)
        if slot is None or slot == LEFT_OUT or category_id not in known:
            if slot is not None and category_id not in known and type(category_id) is int:
                strange.add(category_id)
            _refuse_panoptic(raw, text)
            lost = _lost(slot, category_id in known)
            problems.add(f"annotation of {lost} (left out)", _shown(id_, image_id, position))
            owners.append(LEFT_OUT)
            continue
        if not MARKS.isdisjoint(raw) and is_deleted(raw):
            problems.add(DELETED, _shown(id_, image_id, position))
            owners.append(LEFT_OUT)
            continue
        if patterns.left:
            patterns.add(raw, slot)
        if id_ is None or id_ in used:
            kind = "id missing or not a whole number" if id_ is None else "id occurs twice"
            problems.add(f"annotation {kind} (numbered anew)", _shown(id_, image_id, position))
            unnumbered.append(len(owners))
        else:
            used.add(id_)
        if raw.get("iscrowd") in (None, ""):  # else it decides, which saves time
            raw = settled(raw)  # what is odd about it is counted with its record
        if category_id not in trained:
            (trained if is_trained_on(raw, rules) else others).add(category_id)
        if "ignore" in raw:
            ignored += as_flag(raw["ignore"]) == 1
        owners.append(slot)
    every = trained | others
    return _Assigned(position + 1, owners, used, unnumbered, every, trained, strange, ignored)


def _lost(slot: int | None, known: bool) -> str:
    """What an annotation is of that cannot be used: an image, or a category."""
    if slot is None:
        return "an unknown image"
    return "an image that is left out" if known else "an unknown category"


def _slot(
    image_id: Key | None, written: str | None, slots: dict[Key | None, int], names: FileNames
) -> tuple[int | None, bool]:
    """Returns the place of an annotation's image, and whether its file's name tells it.

    What fits exactly comes first: the text of an id, the name of a file, and last the number.

    Args:
        image_id: its key.
        written: from ``ids.spelled``.
        slots: as in ``index_annotations``.
        names: likewise.
    """
    slot = slots.get(image_id)
    if written in slots:
        return slots[written], False
    if slot is not None and written is None:
        return slot, False
    named = names.find(written or image_id)
    return (slot, False) if named is None else (named, named != slot)


def _span(*ids: Collection[int]) -> tuple[int, int]:
    """Returns the smallest and the largest of all ids; 0 and -1 without any."""
    ends = [end(some) for some in ids if some for end in (min, max)]
    return (min(ends), max(ends)) if ends else (0, -1)


def _refuse_panoptic(raw: dict[str, Any], text: Text) -> None:
    """Refuses COCO's panoptic format, whose annotations are of whole images."""
    if isinstance(raw.get("segments_info"), list):
        raise InputError(
            f"{text.path}: holds panoptic annotations ('segments_info', masks in PNG files), not "
            "instances; converters/panoptic2detection_coco_format.py --things_only of panopticapi "
            "(github.com/cocodataset/panopticapi) makes a file of instances of it"
        )


def _shown(id_: int | None, image_id: Key | None, position: int) -> str:
    annotation = f"annotations[{position}]" if id_ is None else f"annotation {id_}"
    return annotation if image_id is None else f"{annotation} of image {image_id}"
