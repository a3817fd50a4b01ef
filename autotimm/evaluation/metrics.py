"""Metrics during training: which detection metrics to compute, by which library, and on what.

Invariants:

- Masks stay RLE. Every image counts, also one without ground truth and one without detections.
- All ranks get the same numbers, those of one process that saw every image, however unevenly the
  images lie on the ranks; images are taken in the order of their ids, which decides between equal
  scores. (torchmetrics gathers list states pairwise, and hangs or loses images
  where the ranks hold different numbers of them.) What to leave out, such as the repeats that even
  out the ranks, is for the caller to leave out.
- A metric that fails is NaN on all ranks, and ends no run: the first rank computes for all, so none
  waits for another.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric, detection

from autotimm.evaluation.coco_eval import MAX_DETECTIONS, MOST_DETECTIONS
from autotimm.evaluation.packing import pack, unpack
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
        self.needs_masks = any("segm" in _iou_types(c.build()) for c in self.configs)
        self._ids: list[int] = []
        self._images: list[tuple[Detections, Target]] = []
        self._suffixes: dict[str, list[str]] = {}  # by metric, of its values' names
        self._failures: set[tuple[str, str]] = set()

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
            image_ids: by which images are put in order; as they come without.
        """
        ids = image_ids or [len(self._ids) + i for i in range(len(targets))]
        self._ids += ids
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
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self._compute(_ordered(self._ids, self._images), class_names)
        first = dist.get_rank() == 0
        parts: list[Any] = [None] * dist.get_world_size()
        own = [pack(one) for one in zip(*self._images, strict=True)] or [{}, {}]
        dist.gather_object([self._ids, *own], parts if first else None)
        values: list[Any] = [None]
        if first:
            ids = [one for part in parts for one in part[0]]
            images = [pair for part in parts for pair in zip(*map(unpack, part[1:]), strict=True)]
            values[0] = self._compute(_ordered(ids, images), class_names)
        dist.broadcast_object_list(values)
        return values[0]

    def names(self) -> set[str]:
        """The names of what :meth:`compute` returns, without the values of single classes."""
        return {*self._compute([], ())}

    def _compute(
        self, images: Sequence[tuple[Detections, Target]], class_names: Sequence[str]
    ) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for config in self.configs:
            name = f"{self.stage}/{config.name}"
            try:
                found = _named(_values(config, images), class_names)
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                if (name, reason) not in self._failures:  # not every epoch
                    self._failures.add((name, reason))
                    warnings.warn(f"{name} fails, and is NaN: {reason}", stacklevel=2)
                found = dict.fromkeys(
                    self._suffixes.get(config.name, [""]), torch.tensor(torch.nan)
                )
            self._suffixes[config.name] = [*found]
            values |= {f"{name}{suffix}": value for suffix, value in found.items()}
        return values

    def reset(self) -> None:
        """Forget all images."""
        self._ids, self._images = [], []


def _ordered(ids: Sequence[int], images: Sequence[Any]) -> list[Any]:
    return [images[i] for i in sorted(range(len(ids)), key=ids.__getitem__)]


def _named(values: dict[str, Tensor], class_names: Sequence[str]) -> dict[str, Tensor]:
    """Values by their suffixes, with the name of a class for its label, as loggers take it."""
    plain = [re.sub(r"[^\w .-]", "_", name) for name in class_names]
    names = {str(k): one for k, one in enumerate(plain) if plain.count(one) == 1}

    def name(key: str) -> str:
        head, sign, label = key.rpartition("_class_")
        return f"{head}{sign}{names.get(label, label)}" if sign else key

    return {name(key): value for key, value in values.items()}


def _values(config: MetricConfig, images: Sequence[tuple[Detections, Target]]) -> dict[str, Tensor]:
    """By the suffixes of their names."""
    from autotimm.evaluation import by_hotcoco, by_torchmetrics  # a fit starts without them

    metric = config.build()
    if config.backend == "torchmetrics":
        return by_torchmetrics.values(metric, images)
    kinds: Any = _iou_types(metric)
    by_class = bool(config.params.get("class_metrics"))
    return by_hotcoco.values(images, kinds, by_class, config.max_detections)


def _steps(first: float, last: float, step: float) -> list[float]:
    return np.linspace(first, last, round((last - first) / step) + 1).tolist()


def _choose(what: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{what} {value!r} is unknown: choose from {', '.join(choices)}")


def _iou_types(metric: Metric) -> tuple[str, ...]:
    return metric.iou_type if isinstance(metric, detection.MeanAveragePrecision) else ("bbox",)


def _on_cpu(item: Any) -> dict[str, Any]:
    return {k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in item.items()}
