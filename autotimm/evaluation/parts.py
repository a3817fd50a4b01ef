"""What a rank makes of its own images, and a metric's values from what all ranks made of theirs.

All of it is pure functions: ``across_ranks`` has what lies between the ranks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torchmetrics import Metric, detection

from autotimm.evaluation.across_ranks import Failure, Part
from autotimm.structures import Detections, Target

if TYPE_CHECKING:
    from hotcoco import StreamingEval

    from autotimm.evaluation.coco_input import IouType
    from autotimm.evaluation.metrics import MetricConfig

Numbered = tuple[int, Detections, Target]
"""An image's number, what was found in it, and what is there."""


class MatchingError(Exception):
    """A rank could not compare its images; the message is the reason."""


def part_of(
    configs: Sequence[MetricConfig], images: Sequence[Numbered], labels: Sequence[int]
) -> Part:
    """Compares images for those metrics that hotcoco computes, and keeps them for the others.

    Args:
        configs: of the stage.
        images: that this rank is to compare.
        labels: all that occur on any rank, ascending.
    """
    every = [(config, kind) for config in configs for kind in compared(config.build())]
    wanted = {(kind, one.max_detections) for one, kind in every if one.backend == "hotcoco"}
    found = {(kind, limit): _matched(images, labels, kind, limit) for kind, limit in wanted}
    if all(config.backend == "hotcoco" for config in configs):
        images = []
    return Part(found, [number for number, *_ in images], [(f, t) for _, f, t in images])


def values_of(
    config: MetricConfig, parts: Sequence[Part], labels: Sequence[int], class_names: Sequence[str]
) -> dict[str, Tensor]:
    """The values of a metric by the suffixes of their names.

    Args:
        config: the metric.
        parts: of all ranks.
        labels: as of :func:`part_of`.
        class_names: what to call each label; those beyond them by their numbers.

    Raises:
        MatchingError: a rank could not compare its images.
        Exception: whatever the library raises.
    """
    from autotimm.evaluation import by_hotcoco, by_torchmetrics  # a fit starts without them

    metric = config.build()
    if config.backend == "torchmetrics":
        every = [one for part in parts for one in zip(part.numbers, part.images, strict=True)]
        every.sort(key=lambda one: one[0])
        return _named(by_torchmetrics.values(metric, [image for _, image in every]), class_names)
    limit, kinds = config.max_detections, compared(metric)
    found = [
        {(kind, limit): _success(part.found[kind, limit], rank, len(parts)) for kind in kinds}
        for rank, part in enumerate(parts)
    ]
    by_class = bool(config.params.get("class_metrics"))
    return _named(by_hotcoco.values(found, kinds, labels, by_class, limit), class_names)


def compared(metric: Metric) -> tuple[IouType, ...]:
    """What a metric compares: boxes, masks, or both."""
    kinds: Any = ("bbox",)
    return metric.iou_type if isinstance(metric, detection.MeanAveragePrecision) else kinds


def labels_of(images: Sequence[tuple[Detections, Target]]) -> set[int]:
    """Those that were found or are there."""
    return {label for pair in images for one in pair for label in one["labels"].tolist()}


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    kind = "" if isinstance(error, MatchingError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())


def _matched(
    images: Sequence[Numbered], labels: Sequence[int], kind: IouType, max_detections: int
) -> StreamingEval | Failure:
    """A rank that fails goes on, as the others wait for what it has to say."""
    try:
        from autotimm.evaluation import by_hotcoco  # a fit starts without it

        return by_hotcoco.matched(images, labels, kind, max_detections)
    except Exception as error:
        return Failure(reason(error))


def _success(found: StreamingEval | Failure, rank: int, ranks: int) -> StreamingEval:
    if isinstance(found, Failure):
        raise MatchingError(found.reason + (f" (on rank {rank})" if ranks > 1 else ""))
    return found


def _named(values: dict[str, Tensor], class_names: Sequence[str]) -> dict[str, Tensor]:
    """Values by their suffixes, with the name of a class for its label, as loggers take it."""
    plain = [re.sub(r"[^\w .-]", "_", name) for name in class_names]
    names = {str(k): one for k, one in enumerate(plain) if plain.count(one) == 1}

    def name(key: str) -> str:
        head, sign, label = key.rpartition("_class_")
        return f"{head}{sign}{names.get(label, label)}" if sign else key

    return {name(key): value for key, value in values.items()}
