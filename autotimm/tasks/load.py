"""``autotimm.load``: load either kind of model from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autotimm.files import urls
from autotimm.structures import InputError
from autotimm.tasks.checkpoint import model_of, read_checkpoint
from autotimm.tasks.detector import ObjectDetector
from autotimm.tasks.segmentor import InstanceSegmentor


def load(checkpoint: str | Path, device: str = "cpu", **overrides: Any) -> ObjectDetector:
    """Load a model that is ready to predict from a checkpoint.

    It is an InstanceSegmentor, or an ObjectDetector if it was trained without masks. Only weights
    and plain values are read, and files that contain code are refused.

    Args:
        checkpoint: a ``.ckpt`` or ``.safetensors`` file, or a URL of one.
        device: of the model.
        **overrides: constructor arguments that replace the checkpoint's, such as ``score_thresh``.

    Raises:
        InputError: the file does not exist, is not a checkpoint of this package, is unsafe, or
            holds weights that are not finite, with which a model never detects anything.
    """
    content = read_checkpoint(checkpoint)
    settings = content.get("hyper_parameters")
    with_masks = isinstance(settings, dict) and "mask_size" in settings
    kind = InstanceSegmentor if with_masks else ObjectDetector
    name = urls.shown(str(checkpoint))
    model = model_of(kind, content, name, device, True, overrides).eval()
    for key, weight in model.state_dict().items():
        if not weight.isfinite().all():
            raise InputError(f"{name}: {key} is not finite: take an earlier checkpoint")
    return model
