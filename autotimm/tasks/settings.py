"""What a task's settings may be: one line for what cannot be used, or would have no effect."""

from __future__ import annotations

import math
from typing import Any

from autotimm.structures import InputError
from autotimm.tasks import optimization


def check(settings: dict[str, Any]) -> None:
    """Raises InputError for a setting of :class:`autotimm.tasks.detector.ObjectDetector`."""
    if settings["freeze_backbone"] and settings["backbone_norm"] == "sync":
        raise InputError(
            "freeze_backbone=True leaves backbone_norm='sync' nothing to do: leave one of them out"
        )
    if settings["freeze_backbone"] and settings["frozen_stages"]:
        raise InputError("freeze_backbone=True freezes all stages: leave it or frozen_stages out")
    if settings["frozen_stages"] < 0:
        raise InputError(f"frozen_stages={settings['frozen_stages']} must not be negative")
    optimization.check(settings)
    for name in ("num_classes", "fpn_channels", "head_convs", "max_detections_per_image"):
        if settings[name] < 1:
            raise InputError(f"{name}={settings[name]} must be at least 1")
    for name in ("score_thresh", "nms_thresh"):
        if not 0 <= settings[name] <= 1:
            raise InputError(f"{name}={settings[name]} must lie between 0 and 1")
    for name in settings:
        if name.endswith("_loss_weight") or name == "weight_decay":
            check_weight(name, settings[name])


def check_weight(name: str, value: float) -> None:
    """Raises InputError for a weight that is negative, infinite or not a number."""
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name}={value} must be a number, 0 or more")
