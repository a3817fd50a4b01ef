"""One safetensors file with all that :meth:`load_from_checkpoint` needs: to publish a model.

The weights are tensors by name; the settings, categories and preprocessing are JSON in the file's
metadata, under ``autotimm``. Such a file cannot carry code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from autotimm.files.atomic import whole_file
from autotimm.structures import InputError

KEPT = (
    "hyper_parameters",
    "categories",
    "preprocessing",
    "epoch",
    "global_step",
    "pytorch-lightning_version",
)
"""What is kept of a checkpoint besides its weights."""

_LENGTH = 8  # bytes before the header, that tell how long it is


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with these nine bytes is one: its header is JSON."""
    return len(head) > _LENGTH and head[_LENGTH : _LENGTH + 1] == b"{"


def write_weights(checkpoint: dict[str, Any], weights: dict[str, Tensor], path: Path) -> None:
    """Writes ``weights`` and what is kept of ``checkpoint`` to ``path``, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    kept = {key: checkpoint[key] for key in KEPT if key in checkpoint}
    metadata = {"format": "pt", "autotimm": json.dumps(kept)}
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(safetensors.torch.save(tensors, metadata))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def read_weights(content: bytes) -> dict[str, Any]:
    """The checkpoint of a file of :func:`write_weights`, its weights as ``state_dict``.

    Raises:
        InputError: it is damaged, or was written by another package. The message begins with a
            verb, for the file's name to be put in front.
    """
    try:
        weights = safetensors.torch.load(content)
        length = int.from_bytes(content[:_LENGTH], "little")
        metadata = json.loads(content[_LENGTH : _LENGTH + length]).get("__metadata__", {})
        kept = json.loads(metadata["autotimm"])
    except SafetensorError as error:
        raise InputError(f"cannot be read as safetensors ({error})") from error
    except (KeyError, ValueError, AttributeError) as error:
        raise InputError(
            "has no settings of a model of this package: give a file that python -m "
            "autotimm.checkpoints.convert made, or pretrained=<file> for the backbone alone"
        ) from error
    if not isinstance(kept, dict):
        raise InputError("has settings that are no object: it is damaged")
    return {**{key: kept[key] for key in KEPT if key in kept}, "state_dict": weights}
