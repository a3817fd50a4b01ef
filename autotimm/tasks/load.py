"""The model of a checkpoint, whichever of the two it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autotimm.files import urls
from autotimm.structures import InputError
from autotimm.tasks.checkpoint import model_of, read_checkpoint
from autotimm.tasks.detector import ObjectDetector
from autotimm.tasks.segmentor import InstanceSegmentor


def load(checkpoint: str | Path, device: str = "cpu", **overrides: Any) -> ObjectDetector:
    """The model of a checkpoint, ready to predict: an InstanceSegmentor, or an ObjectDetector where
    it was trained without masks.

    Only weights and plain values are read; code in the file is refused.

    Args:
        checkpoint: a ``.ckpt`` or ``.safetensors`` file, or a URL of one.
        device: where the model goes.
        **overrides: constructor arguments that replace the checkpoint's, such as ``score_thresh``.

    Raises:
        InputError: no such file, not a checkpoint of this package that can be read safely, or
            weights that are no finite numbers, with which nothing is ever found.
    """
    content = read_checkpoint(checkpoint)
    settings = content.get("hyper_parameters")
    with_masks = isinstance(settings, dict) and "mask_size" in settings
    kind = InstanceSegmentor if with_masks else ObjectDetector
    name = urls.shown(str(checkpoint))
    model = model_of(kind, content, name, device, True, overrides).eval()
    for key, weight in model.state_dict().items():
        if not weight.isfinite().all():
            raise InputError(f"{name}: {key} is not finite: take a checkpoint from before")
    return model
