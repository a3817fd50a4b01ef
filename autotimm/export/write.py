"""Writes a model as one file for other programs: ONNX, or PyTorch's exported program."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from autotimm.data import options
from autotimm.export.graph import CANDIDATES, Graph
from autotimm.files.atomic import whole_file
from autotimm.files.shortage import reason
from autotimm.redaction import redacted
from autotimm.structures import InputError
from autotimm.tasks.detector import ObjectDetector

STEP = 128
"""Dynamic sides are multiples of this, the stride of the pyramid's coarsest level, in pixels."""
_LEAST, _MOST = 2, 64  # of a dynamic side, in STEPs
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def program(
    model: ObjectDetector,
    image_size: tuple[int, int],
    *,
    dynamic: bool = False,
    min_score: float | None = None,
) -> ExportedProgram:
    """Traces a model with preprocessing and decoding, as a :class:`Graph`.

    Args:
        model: on the CPU, uncompiled.
        image_size: height and width, multiples of 32.
        dynamic: leave height and width free: multiples of 128 from 256 to 8192.
        min_score: least score of a detection; by default all that pass the model's limit on the
            class probability.

    Returns:
        A program that takes ``image`` [B, 3, H, W] float32, RGB from 0 to 255, B up to 1024.

    Raises:
        InputError: the model's ``max_detections_per_image`` is more than the graph can hold.
    """
    settings = model.settings
    if settings.max_detections_per_image > CANDIDATES:
        raise InputError(
            f"max_detections_per_image={settings.max_detections_per_image} is more than the "
            f"{CANDIDATES} that a graph holds: give --max-detections"
        )
    limit = settings.score_thresh if min_score is None else min(settings.score_thresh, min_score**2)
    graph = Graph(
        copy.deepcopy(model.network),  # its weights stop requiring gradients below
        model.preprocessing,
        limit,
        settings.nms_thresh,
        settings.max_detections_per_image,
        min_score or 0.0,
        model.network.half_stride,
        model.network.aligned,
    )
    graph.requires_grad_(False).eval()
    size = (2 * STEP, 3 * STEP) if dynamic else image_size
    # Two images: torch.export takes a dimension of size one for a constant.
    example = torch.rand(2, 3, *size) * 255
    free: dict[int, Any] = {0: Dim("batch", min=1, max=1024)}
    if dynamic:
        free |= {
            2: STEP * Dim("rows", min=_LEAST, max=_MOST),
            3: STEP * Dim("columns", min=_LEAST, max=_MOST),
        }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about its own internals
        return torch.export.export(graph, (example,), dynamic_shapes=(free,))


def to_program(traced: ExportedProgram, path: Path) -> None:
    """Writes a file for ``torch.export.load``, whole or not at all.

    A program that loads it must import torchvision first, for its operators.

    Raises:
        InputError: the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.export.save(traced, buffer)
    _write(buffer.getvalue(), path)


def to_onnx(traced: ExportedProgram, path: Path, facts: dict[str, Any]) -> None:
    """Writes an ONNX file, from pixels to masks, whole or not at all.

    Args:
        traced: from :func:`program`.
        path: the file.
        facts: the file's metadata: class names, sizes, ...; each value is written as JSON.

    Raises:
        InputError: ONNX is not installed, or the file cannot be written.
    """
    check_onnx()
    import onnx

    outputs = ["boxes", "labels", "scores", "masks"][: len(traced.graph_signature.user_outputs)]
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                traced, (), input_names=["image"], output_names=outputs, dynamo=True, verbose=False
            )
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
    assert exported is not None
    content = exported.model_proto
    for name, value in facts.items():
        content.metadata_props.add(key=name, value=json.dumps(redacted(value)))
    onnx.checker.check_model(content)
    _write(content.SerializeToString(), path)


def check_onnx() -> None:
    """Raises InputError if a package that writing ONNX needs is not installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install {' '.join(_NEEDED)}")


def canvas(model: ObjectDetector, given: int | tuple[int, int] | None) -> tuple[int, int]:
    """Height and width to export for: those given, else those of the model's training.

    Raises:
        InputError: neither is known, or they cannot be used.
    """
    if given is None:
        if model.preprocessing.image_size is None:
            raise InputError(
                "the checkpoint does not say at what image size it was trained: give --image-size"
            )
        return model.preprocessing.image_size
    found = options.canvas(given, "--image-size")
    if found != (given if isinstance(given, tuple) else (given, given)):
        raise InputError(f"--image-size {given} must be multiples of {options.STRIDE}")
    return found


def _write(content: bytes, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}") from error
