"""autotimm: train instance segmentation on COCO-format data, from one CPU to many GPU nodes.

The public names are imported on first use, so that the command-line tools which need no model
start at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autotimm import openmp, torchmetrics_import

openmp.wait_asleep()
torchmetrics_import.defer()

__version__ = "0.1.0"

_HOMES = {
    "AutoTrainer": "autotimm.training.trainer",
    "InputError": "autotimm.structures",
    "InstanceSegmentationDataModule": "autotimm.data.datamodule",
    "InstanceSegmentor": "autotimm.tasks.segmentor",
    "MetricConfig": "autotimm.evaluation.metrics",
    "ObjectDetector": "autotimm.tasks.detector",
    "load": "autotimm.tasks.load",
    "predict": "autotimm.inference.predict",
}

__all__ = [
    "AutoTrainer",
    "InputError",
    "InstanceSegmentationDataModule",
    "InstanceSegmentor",
    "MetricConfig",
    "ObjectDetector",
    "load",
    "predict",
]

if TYPE_CHECKING:
    from autotimm.data.datamodule import InstanceSegmentationDataModule
    from autotimm.evaluation.metrics import MetricConfig
    from autotimm.inference.predict import predict
    from autotimm.structures import InputError
    from autotimm.tasks.detector import ObjectDetector
    from autotimm.tasks.load import load
    from autotimm.tasks.segmentor import InstanceSegmentor
    from autotimm.training.trainer import AutoTrainer


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
