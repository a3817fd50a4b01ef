"""Metrics during training: which detection metrics to compute, by which library, and on what.

Invariants:

- Masks stay RLE. Every image counts, also one without ground truth and one without detections.
- All ranks get the same numbers, those of one process that saw every image, however unevenly the
  images lie on the ranks; images are taken in the order of their ids, which decides between equal
  scores. (torchmetrics gathers list states pairwise, and hangs or loses images
  where the ranks hold different numbers of them.) An image counts once, also one that several
  ranks have.
- A metric that fails is NaN on all ranks, and ends no run: ``across_ranks`` has what the ranks
  tell each other.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric, detection

from autotimm.evaluation.across_ranks import (
    Key,
    Part,
    from_first,
    numbered,
    place,
    to_all,
    to_first,
)
from autotimm.evaluation.coco_eval import MAX_DETECTIONS, MOST_DETECTIONS
from autotimm.evaluation.parts import compared, labels_of, part_of, reason, values_of
from autotimm.plain import plain_settings
from autotimm.structures import Detections, InputError, Target

BACKENDS = ("torchmetrics", "hotcoco")
STAGES = ("val", "test")
METRIC_CLASSES = (
    "MeanAveragePrecision",
    "IntersectionOverUnion",
    "GeneralizedIntersectionOverUnion",
    "DistanceIntersectionOverUnion",
    "CompleteIntersectionOverUnion",
)
"""The metrics of ``torchmetrics.detection`` that compare boxes or masks of instances."""
OF_HOTCOCO = ("iou_type", "class_metrics", "box_format")


@plain_settings
@dataclass(frozen=True)
class MetricConfig:
    """A metric to compute in evaluation.

    Attributes:
        name: what it is logged as: ``val/<name>``, and its details as ``val/<name>_50`` and so on.
        backend: the library that computes it; one of ``BACKENDS``. ``hotcoco`` has the same AP
            under the same names in about a fifth of the time, and none of its parameters but
            ``iou_type``, ``class_metrics`` and ``box_format``.
        metric_class: one of ``METRIC_CLASSES``.
        params: arguments of that class. Boxes are handed to it in whatever ``box_format`` says.
        stages: when to compute it; some of ``STAGES``.
        prog_bar: show the main value in the progress bar.
        max_detections: how many detections of a class count in an image, the best ones: N of
            pycocotools' ``maxDets = [1, 10, N]``; of ``backend: hotcoco``. The model must find as
            many: its ``max_detections_per_image`` limits those of all classes.

    Raises:
        InputError: a value is none of the choices, which the message names.
    """

    name: str
    backend: str = "torchmetrics"
    metric_class: str = "MeanAveragePrecision"
    params: dict[str, Any] = field(default_factory=dict)
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    prog_bar: bool = False
    max_detections: int = MAX_DETECTIONS

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise InputError(f"metric name {self.name!r}: give a name without a slash")
        where = f"metric {self.name!r}"
        _choose(f"{where}: backend", self.backend, BACKENDS)
        _choose(f"{where}: metric_class", self.metric_class, METRIC_CLASSES)
        for stage in self.stages:
            _choose(f"{where}: stage", stage, STAGES)
        parameters = inspect.signature(getattr(detection, self.metric_class)).parameters
        for key in self.params:
            _choose(f"{where}: parameter", key, [name for name in parameters if name != "kwargs"])
        if self.backend == "hotcoco":
            _choose(f"{where}: metric_class of hotcoco", self.metric_class, METRIC_CLASSES[:1])
            for key in self.params:
                _choose(f"{where}: parameter of hotcoco", key, OF_HOTCOCO)
        if not 10 <= self.max_detections <= MOST_DETECTIONS:
            raise InputError(
                f"{where}: max_detections {self.max_detections} must be 10 to {MOST_DETECTIONS:,}"
            )
        if self.max_detections != MAX_DETECTIONS and self.backend != "hotcoco":
            raise InputError(
                f"{where}: max_detections {self.max_detections} is for backend hotcoco, which has "
                "the same AP: take that (torchmetrics knows AP at 100 detections alone)"
            )
        if self.params.get("extended_summary"):
            raise InputError(f"{where}: extended_summary gives tables, which cannot be logged")
        needed = self.params.get("backend")
        if needed == "faster_coco_eval" and not importlib.util.find_spec(needed):
            raise InputError(f"{where}: backend {needed} needs pip install faster-coco-eval")
        try:
            self.build()
        except (ValueError, TypeError) as error:
            raise InputError(f"{where}: {error}") from error
        limits = self.params.get("max_detection_thresholds")
        if limits is not None and 100 not in limits:
            # pycocotools' summary takes AP at 100 whatever the limits are: it would stay -1.
            raise InputError(f"{where}: max_detection_thresholds {limits} must have 100 among them")

    def build(self) -> Metric:
        """A fresh metric that never gathers by itself."""
        params = dict(self.params)
        if isinstance(params.get("iou_type"), list):
            params["iou_type"] = tuple(params["iou_type"])
        if self.metric_class == "MeanAveragePrecision":
            # COCO's own, in float64: torchmetrics' defaults are rounded to float32, which moves AP
            # by up to 0.001, where a recall or an IoU lies on a threshold.
            params["iou_thresholds"] = params.get("iou_thresholds") or _steps(0.5, 0.95, 0.05)
            params["rec_thresholds"] = params.get("rec_thresholds") or _steps(0.0, 1.0, 0.01)
        return getattr(detection, self.metric_class)(**params, sync_on_compute=False)


class StageMetrics(nn.Module):
    """The metrics of one stage over all images of a pass and all ranks.

    Holds boxes, labels, scores and RLE of the images seen on this rank, on the CPU; nothing of it
    enters ``state_dict``.
    """

    def __init__(self, stage: str, configs: Sequence[MetricConfig]) -> None:
        """Takes those of ``configs`` that are for ``stage``; InputError where two share a name."""
        super().__init__()
        _choose("stage", stage, STAGES)
        self.stage = stage
        self.configs = [config for config in configs if stage in config.stages]
        names = [config.name for config in self.configs]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two metrics are named {name!r}: rename one")
        self.needs_masks = any("segm" in compared(c.build()) for c in self.configs)
        self._keys: list[Key] = []
        self._images: list[tuple[Detections, Target]] = []
        self._suffixes: dict[str, list[str]] = {}  # by metric, of its values' names
        self._told: set[str] = set()

    def update(
        self,
        detections: Sequence[Detections],
        targets: Sequence[Target],
        image_ids: Sequence[int] | None = None,
    ) -> None:
        """Add some images.

        Args:
            detections: one per image, in the pixels of the original image; ``rles`` where masks
                are compared.
            targets: one per image, crowd included.
            image_ids: by which images are put in order, and one that comes twice is known; as they
                come without.
        """
        so_far = len(self._keys)
        self._keys += [
            Key(image_ids[i], given=True) if image_ids else Key(so_far + i, given=False)
            for i in range(len(targets))
        ]
        for found, target in zip(detections, targets, strict=True):
            if self.needs_masks and "rles" not in found:
                raise InputError(
                    f"{self.stage} metrics compare masks (iou_type segm), but the model gives none:"
                    " use iou_type bbox or an InstanceSegmentor"
                )
            # Predicted dense masks, if there are any, are not kept: rles hold the same.
            kept = {key: value for key, value in found.items() if key != "masks"}
            self._images.append((_on_cpu(kept), _on_cpu(target)))  # type: ignore[arg-type]

    def compute(self, class_names: Sequence[str] = ()) -> dict[str, Tensor]:
        """Every metric of the stage over the images of all ranks; every rank must call it.

        Args:
            class_names: what to call each label; those beyond them by their numbers.

        Returns:
            Scalars by name. ``<stage>/<name>`` is the main value (mean AP; IoU); AP's others are
            ``<stage>/<name>_50``, ``_75``, ``_small``, ``_medium``, ``_large``, ``_mar_1``,
            ``_mar_100``, ``_mar_small`` ... With two ``iou_type``s these are the masks', and the
            boxes' are ``<stage>/<name>_bbox``, ``<stage>/<name>_bbox_50`` ... ``class_metrics``
            adds ``_class_<class>`` (and ``_mar_100_class_<class>``) for the classes that occur;
            what is not a letter, digit, space, dot or dash in a class' name is a ``_`` there.
            AP is -1 where there was nothing to count. Of a metric that fails, of which a warning
            tells, all values are NaN that it had before, or the main one if it had none.
        """
        if not self.configs:
            return {}
        known = to_all((self._keys, labels_of(self._images)))
        shares = numbered([keys for keys, _ in known])
        labels = sorted({label for _, some in known for label in some})
        rank, _ = place()
        images = [(number, *self._images[at]) for at, number in shares[rank].items()]
        parts = to_first(part_of(self.configs, images, labels))
        own, lines = self._joined(parts, labels, class_names) if rank == 0 else ({}, [])
        values = from_first(own)
        if rank == 0:  # once the others have the values, as Python may make errors of warnings
            seen, count = sum(len(keys) for keys, _ in known), sum(map(len, shares))
            self._warn([*self._of_repeats(seen, count), *lines])
        return values

    def names(self) -> set[str]:
        """The names of what :meth:`compute` returns, without the values of single classes."""
        values, lines = self._joined([part_of(self.configs, [], ())], (), ())
        self._warn(lines)
        return {*values}

    def _joined(
        self, parts: Sequence[Part], labels: Sequence[int], class_names: Sequence[str]
    ) -> tuple[dict[str, Tensor], list[str]]:
        """The values of every metric, of what all ranks have, and a line of each that fails."""
        values: dict[str, Tensor] = {}
        lines = []
        for config in self.configs:
            name = f"{self.stage}/{config.name}"
            try:
                found = values_of(config, parts, labels, class_names)
            except Exception as error:
                lines.append(f"{name} fails, and is NaN: {reason(error)}")
                found = dict.fromkeys(
                    self._suffixes.get(config.name, [""]), torch.tensor(torch.nan)
                )
            self._suffixes[config.name] = [*found]
            values |= {f"{name}{suffix}": value for suffix, value in found.items()}
        return values, lines

    def _of_repeats(self, seen: int, count: int) -> list[str]:
        if seen == count:
            return []
        line = f"{self.stage}: {seen - count:,} of {seen:,} images have the id of another one"
        return [f"{line}, which alone counts in the metrics"]

    def _warn(self, lines: Sequence[str]) -> None:
        for line in lines:
            if line not in self._told:  # not every epoch
                self._told.add(line)
                warnings.warn(line, stacklevel=3)

    def reset(self) -> None:
        """Forget all images."""
        self._keys, self._images = [], []


def _steps(first: float, last: float, step: float) -> list[float]:
    return np.linspace(first, last, round((last - first) / step) + 1).tolist()


def _choose(what: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{what} {value!r} is unknown: choose from {', '.join(choices)}")


def _on_cpu(item: Any) -> dict[str, Any]:
    return {k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in item.items()}
