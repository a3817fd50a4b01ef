"""Publish a model as one safetensors file with everything that ``load_from_checkpoint`` needs.

The file holds the weights by name, and the settings, categories and preprocessing as JSON under
``autotimm`` in its metadata, and a checksum of the file. It cannot contain code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from autotimm.files.atomic import whole_file
from autotimm.files.checksums import KEY, UNSEALED, DamagedError, InMemory, check, sealed
from autotimm.files.shortage import reason
from autotimm.plain import plain
from autotimm.redaction import redacted
from autotimm.structures import InputError

KEPT = (
    "hyper_parameters",
    "categories",
    "preprocessing",
    "epoch",
    "global_step",
    "pytorch-lightning_version",
)
"""The keys of a checkpoint that the file keeps besides the weights."""

_LENGTH = 8  # bytes before the header, which hold its length


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with these nine bytes is a safetensors file with a JSON header."""
    return len(head) > _LENGTH and head[_LENGTH : _LENGTH + 1] == b"{"


def write_weights(checkpoint: dict[str, Any], weights: dict[str, Tensor], path: Path) -> None:
    """Write ``weights`` and the ``KEPT`` keys of ``checkpoint`` to ``path``, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    kept = {key: checkpoint[key] for key in KEPT if key in checkpoint}
    try:
        settings = json.dumps(redacted(plain(kept)))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"cannot write {path}: its settings are no plain values ({error})"
        ) from error
    metadata = {"format": "pt", "autotimm": settings, KEY: UNSEALED}
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(sealed(safetensors.torch.save(tensors, metadata)))
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}") from error


def read_weights(content: bytes) -> tuple[bool, dict[str, Any]]:
    """Read a file of :func:`write_weights` as a checkpoint, with the weights as ``state_dict``.

    Returns:
        Whether the file has a checksum, which files of older versions lack; and the checkpoint.

    Raises:
        InputError: the file is damaged, or another package wrote it. The message begins with a
            verb, so that callers can put the file's name in front.
    """
    try:
        checked = check(InMemory(content))
        weights = safetensors.torch.load(content)
        length = int.from_bytes(content[:_LENGTH], "little")
        metadata = json.loads(content[_LENGTH : _LENGTH + length]).get("__metadata__", {})
        kept = json.loads(metadata["autotimm"])
    except DamagedError as error:
        raise InputError(f"cannot be read as safetensors: it is damaged ({error})") from error
    except SafetensorError as error:
        raise InputError(f"cannot be read as safetensors ({error})") from error
    except (KeyError, ValueError, AttributeError) as error:
        raise InputError(
            "has no settings of a model of this package: give a file that python -m "
            "autotimm.checkpoints.convert made, or pretrained=<file> for the backbone alone"
        ) from error
    if not isinstance(kept, dict):
        raise InputError("has settings that are not a JSON object: it is damaged")
    return checked, {**{key: kept[key] for key in KEPT if key in kept}, "state_dict": weights}
