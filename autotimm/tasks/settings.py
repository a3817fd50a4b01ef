"""The arguments of the tasks as frozen dataclasses that check their values.

Lightning keeps the arguments as ``hparams`` in the model and in its checkpoints, and users may
change them (``model.hparams.score_thresh = 0.3``). The code reads them through these classes, which
check a changed value like an argument.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from autotimm.models.backbone import Norm
from autotimm.models.losses import BoxQuality, MaskLoss
from autotimm.models.network import Layout
from autotimm.plain import plain_settings
from autotimm.structures import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    _Settings = TypeVar("_Settings", bound=DataclassInstance)

OptimizerName = Literal["adamw", "sgd"]
SchedulerName = Literal["cosine", "multistep", "constant"]


@plain_settings
@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorSettings:
    """The arguments of :class:`autotimm.tasks.detector.ObjectDetector` except ``metrics``.

    Raises:
        InputError: a value is invalid or would have no effect; the message names the argument.
    """

    backbone: str
    num_classes: int
    pretrained: bool | str
    fpn_channels: int
    head_convs: int
    layout: Layout
    box_quality: BoxQuality
    class_loss_weight: float
    box_loss_weight: float
    centerness_loss_weight: float
    score_thresh: float
    nms_thresh: float
    max_detections_per_image: int
    freeze_backbone: bool
    frozen_stages: int
    backbone_norm: Norm
    optimizer: OptimizerName
    lr: float
    backbone_lr_factor: float
    layer_decay: float
    weight_decay: float
    scheduler: SchedulerName | None
    milestones: list[float] | None
    warmup_steps: int
    compile_model: bool
    compile_kwargs: dict[str, Any] | None

    def __post_init__(self) -> None:
        if self.freeze_backbone and self.backbone_norm == "sync":
            raise InputError(
                "backbone_norm='sync' has no effect with freeze_backbone=True: leave one of them "
                "out"
            )
        if self.freeze_backbone and self.frozen_stages:
            raise InputError(
                "freeze_backbone=True freezes all stages: leave it or frozen_stages out"
            )
        if self.frozen_stages < 0:
            raise InputError(f"frozen_stages={self.frozen_stages} must not be negative")
        self._check_optimization()
        for name in ("num_classes", "fpn_channels", "head_convs", "max_detections_per_image"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("score_thresh", "nms_thresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        for kind in ("class_loss", "box_loss", "centerness_loss"):
            _check_weight(f"{kind}_weight", getattr(self, f"{kind}_weight"))
        _check_weight("weight_decay", self.weight_decay)

    def _check_optimization(self) -> None:
        if self.optimizer not in get_args(OptimizerName):
            raise InputError(f"optimizer={self.optimizer!r} is unknown: take adamw or sgd")
        if self.scheduler is not None and self.scheduler not in get_args(SchedulerName):
            raise InputError(
                f"scheduler={self.scheduler!r} is unknown: take cosine, multistep or constant"
            )
        for name in ("lr", "backbone_lr_factor"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise InputError(f"{name}={getattr(self, name)} must be a positive number")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay={self.layer_decay} must lie above 0 and be at most 1")
        if self.freeze_backbone:
            for name in ("backbone_lr_factor", "layer_decay"):
                if getattr(self, name) != 1:
                    raise InputError(
                        f"{name}={getattr(self, name)} has no effect with freeze_backbone: leave "
                        "one out"
                    )
        warmup: Any = self.warmup_steps
        if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
            raise InputError(f"warmup_steps={warmup!r} must be a whole number, 0 or more")
        _check_milestones(self.milestones, self.scheduler)


@plain_settings
@dataclass(frozen=True, kw_only=True, slots=True)
class MaskSettings:
    """The additional arguments of :class:`autotimm.tasks.segmentor.InstanceSegmentor`.

    Raises:
        InputError: a value is invalid; the message names the argument.
    """

    mask_size: int
    mask_rois: int
    mask_loss: MaskLoss
    mask_loss_weight: float

    def __post_init__(self) -> None:
        if self.mask_size < 2 or self.mask_size % 2:
            raise InputError(f"mask_size={self.mask_size} must be even, such as 28")
        if self.mask_rois < 1:
            raise InputError(f"mask_rois={self.mask_rois} must be at least 1")
        _check_weight("mask_loss_weight", self.mask_loss_weight)


def by_name(settings: DataclassInstance) -> dict[str, Any]:
    """The values of the fields by name, as in Lightning's ``hparams``."""
    return {one.name: getattr(settings, one.name) for one in fields(settings)}


def from_hparams(kind: type[_Settings], hparams: Mapping[str, Any]) -> _Settings:
    """The settings of a kind, read from ``hparams``.

    Raises:
        InputError: a value was changed to an invalid one.
    """
    return kind(**{one.name: hparams[one.name] for one in fields(kind)})


def _check_milestones(milestones: Sequence[float] | None, scheduler: str | None) -> None:
    if milestones is None:
        return
    if scheduler != "multistep":
        raise InputError(f"milestones have no effect with scheduler={scheduler}: take multistep")
    given = list(milestones) if isinstance(milestones, Sequence) else []
    if not given or given != sorted(set(given)) or not all(0 < share < 1 for share in given):
        raise InputError(
            f"milestones={milestones!r} must be increasing shares of the run between 0 and 1, like "
            f"[0.667, 0.917]"
        )


def _check_weight(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name}={value} must be a number, 0 or more")
