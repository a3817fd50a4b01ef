"""Sentences about the instances of a split that no network learns, the same in all verbs."""

from __future__ import annotations

from collections.abc import Sequence

from autotimm.coco import segmentation
from autotimm.coco.checks import INSTANCE_LEFT_OUT, Problems


def untrained_remark(names: Sequence[str]) -> str:
    """Says which categories no network learns, why that may be a mistake, and the way out."""
    return (
        f"every annotation of {', '.join(names)} is a crowd or to be ignored, so it is never "
        "learnt; if these are ordinary instances (datumaro without is_crowd, and supervision where "
        "a mask has parts or holes, write iscrowd: 1), autotimm shard --crowd instance takes "
        "crowds as such; ignore: 1 has to be taken out of the file"
    )


def lost_instances(instances: int, problems: Problems) -> str:
    """Says by kind why none of the instances can be used; nothing if one can, or there were none.

    Args:
        instances: how many can be used.
        problems: of these and of the others.
    """
    lines = [line for line in problems.lines() if INSTANCE_LEFT_OUT in line]
    if instances or not lines:
        return ""
    why = f"no instance can be used: {'; '.join(lines)}"
    if any(line.startswith(segmentation.NONE) for line in lines):
        why += "; masks come from 'segmentation' (polygons or RLE), boxes alone do not give them"
    return why


def ignored_remark(count: int) -> str:
    """Says what becomes of annotations with ``ignore: 1``."""
    return f"{count:,} annotations with ignore: 1 are not trained on, as crowds are not"


def untrained_and_ignored(untrained: Sequence[str], ignored: int) -> str:
    """Both remarks, as far as there is something to say; nothing for ordinary data."""
    remarks = [untrained_remark(untrained)] if untrained else []
    return "; ".join([*remarks, *([ignored_remark(ignored)] if ignored else [])])
