"""The ground truth from any source: an annotation file, its content, records of a data set.

Invariants: every instance counts as pycocotools counts it, also one without a mask; what cannot be
used is left out and counted by kind; ids are the dataset's own, those of annotations from 1 on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autotimm.coco.checks import Problems
from autotimm.coco.federated import FEDERATED
from autotimm.coco.ids import id_key
from autotimm.coco.index import Category
from autotimm.coco.truths import maskless, of_evaluation, truths
from autotimm.structures import InputError, Record


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """Images, and every instance in them that evaluation counts.

    Attributes:
        name: what messages call it.
        images: as a COCO file has them: ``id``, ``file_name``, ``height``, ``width``, and LVIS'
            lists where the file has them.
        annotations: as ``coco.truths`` has them, with ``image_id``, and ``given_id``, their own.
        categories: by id.
        problems: what was odd.
        numbers: the number of each image whose id is none, by that id.
        maskless: why truths have no mask, where the file gives one.
    """

    name: str
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[Category]
    problems: Problems = field(default_factory=Problems)
    numbers: dict[Any, int] = field(default_factory=dict)
    maskless: str = ""

    @property
    def federated(self) -> bool:
        """Whether the images say what was looked for in them: LVIS' rule goes by that."""
        return any(FEDERATED[0] in image for image in self.images)

    def frame(self) -> dict[str, Any]:
        """Images and categories as COCO's evaluation takes them."""
        # Names may be anything; only ids count.
        images = [{**image, "file_name": ""} for image in self.images]
        categories = [
            {"id": one.id, "name": str(one.id)}
            | ({"frequency": one.frequency} if one.frequency else {})
            for one in self.categories
        ]
        return {"images": images, "categories": categories}

    def content(self) -> dict[str, Any]:
        """The content of a COCO annotation file that says the same."""
        categories = [
            {"id": one.id, "name": one.name, "supercategory": one.supercategory}
            | ({} if one.given_id is None else {"given_id": one.given_id})
            for one in self.categories
        ]
        annotations = []
        for one in self.annotations:
            entry = {**one, "id": one["given_id"]}
            del entry["given_id"], entry["masked"]
            annotations.append(entry)
        return {"images": self.images, "annotations": annotations, "categories": categories}


def of_records(
    records: Iterable[Record],
    categories: Iterable[Category],
    name: str = "the data",
    problems: Problems | None = None,
) -> GroundTruth:
    """The ground truth in checked records, of a COCO folder or of its shards.

    Args:
        records: one an image.
        categories: of the data set.
        name: what messages call it.
        problems: what was odd where the records were made.

    Raises:
        InputError: two images have one id that is no whole number, as in joined shards of older
            versions; names it.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    numbers: dict[Any, int] = {}
    for record in records:
        image: dict[str, Any] = {"id": record["image_id"]}
        if "given_id" in record:
            image["given_id"] = record["given_id"]
            key = id_key(record["given_id"], exact=True)
            if key in numbers:
                raise InputError(
                    f"{name}: two images have the id {key}, the second one {record['file_name']}: "
                    "results cannot tell them apart; make the shards again, or change its id"
                )
            numbers[key] = record["image_id"]
        image |= {key: record[key] for key in ("file_name", "height", "width")}
        images.append(image | {key: record[key] for key in FEDERATED if key in record})
        _append(annotations, record)
    by_id = sorted(categories, key=lambda one: one.id)
    problems = problems or Problems()
    kept, why = of_evaluation(problems), maskless(problems)
    return GroundTruth(name, images, annotations, by_id, kept, numbers, why)


def _append(annotations: list[dict[str, Any]], record: Record) -> None:
    """Appends the truths of an image, numbered from 1 on.

    COCOeval takes a match with annotation 0 for no match.
    """
    for one in truths(record):
        entry: dict[str, Any] = {**one, "image_id": record["image_id"], "given_id": one["id"]}
        annotations.append(entry | {"id": len(annotations) + 1})


def number_of(image_id: Any, numbers: Mapping[Any, int]) -> int | None:
    """The number of an image, by its id as a file has it; None where that cannot be one."""
    key = id_key(image_id, exact=True)
    return numbers.get(key) if isinstance(key, str) else key
