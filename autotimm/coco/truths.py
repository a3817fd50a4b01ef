"""What evaluation counts of an image: every instance of the file, as pycocotools takes it.

Training learns from instances with a mask; COCO's evaluation also counts those that have a box
alone, or a mask that covers no pixel centre, and it takes a box or an area as the file has it, be
it without a size. ``checked_annotations`` keeps both apart: what training learns from, mended, and
beside it, only where the two differ, what the file says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypedDict

from autotimm.coco import boxes, masks, segmentation
from autotimm.coco.checks import RULES, Problems, Rules, check_annotation, is_trained_on
from autotimm.coco.flags import DELETED, as_flag, is_deleted, settled
from autotimm.structures import RLE, Annotation, Record, Unmasked

# How kinds of problems begin: what training takes otherwise, and what pycocotools takes alike.
_MENDED = ("bbox without an area", "area is not a positive number")
_ALIKE = ("polygon leaves the image", "iscrowd missing")
_PLAIN = frozenset(
    ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "ignore")
)  # keys that settle nothing
_LARGEST = 1e15  # pixels: larger areas, infinite ones too, are of no size class anyway


class Truth(TypedDict):
    """An instance as evaluation takes it, in the pixels of the original image."""

    id: int
    category_id: int  # the dataset's own
    bbox: list[float]  # x, y, w, h
    area: float
    iscrowd: int
    ignore: int  # the file's flag: LVIS' rule goes by it, COCO's does not
    segmentation: RLE  # empty where there is no mask
    masked: bool  # whether the file has a mask that covers a pixel


def checked_annotations(
    raws: Iterable[dict[str, Any]],
    height: int,
    width: int,
    odd: Callable[[Mapping[str, Any], str], object],
    rules: Rules = RULES,
) -> tuple[list[Annotation], list[Unmasked]]:
    """Checks the annotations of an image, of which ``id`` and ``category_id`` are integers already.

    Args:
        raws: as the COCO file has them.
        height: of the image, in pixels.
        width: of the image, in pixels.
        odd: called with an annotation and the kind of each of its problems.
        rules: what to do with boxes and crowds.

    Returns:
        Those that training learns from, and those without a mask that evaluation counts besides.
    """
    annotations: list[Annotation] = []
    unmasked: list[Unmasked] = []
    given: dict[str, Any] = {}

    def count(kind: str) -> None:
        odd(given, kind)  # the annotation that the loop is at

    for given in raws:
        raw = given
        if not _PLAIN.issuperset(given):
            if is_deleted(given):
                count(DELETED)
                continue
            if isinstance(given.get("score"), float):
                count("annotation has a score, as results have (kept, as a truth)")
            raw = settled(given, count)
        raw = _tidied(raw, count)
        checked = check_annotation(raw, height, width, count, rules)
        if checked is None:
            truth = _unmasked(raw, rules)
            if truth is not None:
                unmasked.append(truth)
            continue
        if checked["bbox"] is not raw.get("bbox") or checked["area"] is not raw.get("area"):
            _keep_given(raw, checked)
        annotations.append(checked)
    if len({one["area"] for one in annotations}) < len(annotations):  # few images
        _count_doubles(annotations, odd)
    return annotations, unmasked


def trained_categories(
    raws: Iterable[dict[str, Any]],
    height: int,
    width: int,
    rules: Rules = RULES,
    known: Collection[int] = (),
) -> set[int]:
    """The categories of which an image has an instance that can be trained on.

    Args:
        raws: its annotations, as for ``checked_annotations``; one of each category is enough.
        height: of the image, in pixels.
        width: of the image, in pixels.
        rules: what to do with boxes and crowds.
        known: categories that are not looked for.
    """
    found: set[int] = set()
    for given in raws:
        id_ = given["category_id"]
        if id_ in found or id_ in known:
            continue
        raw = settled(given)
        if not is_trained_on(raw, rules):
            continue
        plain = _tidied(raw, lambda _: None)
        if check_annotation(plain, height, width, lambda _: None, rules) is not None:
            found.add(id_)
    return found


def truths(record: Record) -> list[Truth]:
    """All that evaluation counts of an image."""
    size = record["height"], record["width"]
    found = [
        Truth(
            id=one["id"],
            category_id=one["category_id"],
            bbox=one.get("given_bbox", one["bbox"]),
            area=one.get("given_area", one["area"]),
            iscrowd=one["iscrowd"],
            ignore=one.get("ignore", 0),
            segmentation=one["segmentation"],
            masked=True,
        )
        for one in record["annotations"]
    ]
    return found + [
        Truth(
            id=one["id"],
            category_id=one["category_id"],
            bbox=one["bbox"],
            area=one["area"],
            iscrowd=one["iscrowd"],
            ignore=one.get("ignore", 0),
            segmentation=masks.empty(*size),
            masked=False,
        )
        for one in record.get("unmasked", ())
    ]


def unlearnt(kinds: Mapping[str, int]) -> int:
    """How many instances ``check_annotation`` left out that may be truths without a mask."""
    return sum(count for kind, count in kinds.items() if _is_unlearnt(kind))


def mended(kinds: Mapping[str, int]) -> int:
    """How many boxes and areas it mended that evaluation takes as the file has them."""
    return sum(count for kind, count in kinds.items() if kind.startswith(_MENDED))


def of_evaluation(problems: Problems) -> Problems:
    """Those that make a difference to what evaluation counts, or to what pycocotools would."""
    kept = Problems()
    for kind, count in problems.counts.items():
        if not (_is_unlearnt(kind) or kind.startswith((*_MENDED, *_ALIKE))):
            kept.counts[kind], kept.examples[kind] = count, problems.examples[kind]
    return kept


def maskless(problems: Problems) -> str:
    """Says by kind why truths have no mask, unless the file gives none."""
    kinds = [kind for kind in problems.counts if _is_unlearnt(kind)]
    return ", ".join(
        f"{kind.rpartition(' (')[0]}: {problems.counts[kind]:,}"
        for kind in kinds
        if not kind.startswith(segmentation.NONE)
    )


def _is_unlearnt(kind: str) -> bool:
    return kind.endswith("(instance left out)") and not kind.startswith("iscrowd")


def _count_doubles(
    annotations: Iterable[Annotation], odd: Callable[[Mapping[str, Any], str], object]
) -> None:
    """Counts the annotations that equal another of their image in all but the id."""
    seen: dict[tuple[float, float], Annotation] = {}
    for one in annotations:
        other = seen.setdefault((one["area"], one["bbox"][0]), one)
        if other is not one and {**other, "id": one["id"]} == one:
            odd(one, "annotation is the same as another of its image (both kept)")


def _tidied(raw: dict[str, Any], odd: Callable[[str], object]) -> dict[str, Any]:
    """An annotation whose box and area are numbers where they can mean these only."""
    box, area = raw.get("bbox"), raw.get("area")
    if type(box) is list and len(box) == 4 and type(area) is float:  # as nearly all are
        x, y, w, h = box
        if type(x) is type(y) is type(w) is type(h) is float:
            return raw
    if type(box) is not list or len(box) != 4 or str in map(type, box):
        found, kind = boxes.read(box)
        if kind is not None:
            odd(kind)
            raw = {**raw, "bbox": found}
    if type(area) is str and (read := boxes.number(area)) is not None:
        odd("area in quotes (read)")
        raw = {**raw, "area": read}
    return raw


def _keep_given(raw: dict[str, Any], annotation: Annotation) -> None:
    """Adds the file's own box and area, where training takes the mask's because they have no size.

    A box that is given another value on purpose is not the file's any more.
    """
    box, area = _box(raw.get("bbox")), _number(raw.get("area"))
    if box is not None and min(box[2:]) <= 0:
        annotation["given_bbox"] = box
    if area is not None and not 0 < area < _LARGEST:
        annotation["given_area"] = area


def _unmasked(raw: dict[str, Any], rules: Rules) -> Unmasked | None:
    """A truth whose mask cannot be used; None if it has no box either."""
    box, area, crowd = (
        _box(raw.get("bbox")),
        _number(raw.get("area")),
        as_flag(raw.get("iscrowd") or 0),
    )
    if box is None and raw.get("segmentation"):
        box = [0.0, 0.0, 0.0, 0.0]  # a mask of no pixel: there to be missed
    if box is None or crowd is None:
        return None
    truth: Unmasked = {
        "id": raw["id"],
        "category_id": raw["category_id"],
        "bbox": box,
        "area": max(box[2], 0) * max(box[3], 0) if area is None else area,
        "iscrowd": crowd if rules.crowd == "keep" else 0,
    }
    if as_flag(raw.get("ignore")):
        truth["ignore"] = 1
    return truth


def _box(value: Any) -> list[float] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    sides = [_number(side) for side in value]
    return None if None in sides else sides  # type: ignore[return-value]


def _number(value: Any) -> float | None:
    """A number that is not NaN, within limits; None if it is none."""
    if type(value) not in (int, float) or value != value:
        return None
    return value if -_LARGEST < value < _LARGEST else (_LARGEST if value > 0 else -_LARGEST)
