"""What several annotation files say of one image, as one record: pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from autotimm.coco.checks import Problems
from autotimm.coco.federated import FEDERATED
from autotimm.structures import Annotation, Record, Unmasked


def merged(records: Sequence[Record], problems: Problems | None) -> Record:
    """What several files say of one image; their ids are those of the whole.

    Of LVIS' lists: a category with an instance in any file is not negative, and one that any file
    has not annotated completely is not complete.
    """
    whole = records[0]
    first: dict[tuple[int | float | str, ...], int] = {}  # what is where first, by file

    def is_first(file: int, one: Annotation | Unmasked, *key: float | str) -> bool:
        if first.setdefault((one["category_id"], *key), file) == file:
            return True
        if problems is not None:
            what = f"annotation {one['id']} of {whole['file_name']}"
            problems.add("instance is in several annotation files (taken once)", what)
        return False

    annotations = []
    for file, record in enumerate(records):
        for one in record["annotations"]:
            if is_first(file, one, one["segmentation"]["counts"]):
                annotations.append(one)
            # The same instance without its mask, in another file, is not another one.
            first.setdefault((one["category_id"], *one["bbox"]), file)
    unmasked = [
        one
        for file, record in enumerate(records)
        for one in record.get("unmasked", ())
        if is_first(file, one, *one["bbox"])
    ]
    whole["annotations"] = annotations
    if unmasked:
        whole["unmasked"] = unmasked
    else:
        whole.pop("unmasked", None)
    present = {one["category_id"] for one in (*annotations, *unmasked)}
    for name in FEDERATED:
        listed = [record[name] for record in records if name in record]
        if listed:
            without = present if name == "neg_category_ids" else set()
            whole[name] = [id_ for id_ in dict.fromkeys(chain(*listed)) if id_ not in without]
    return whole
