"""Reading checkpoints: weights and plain values only, from a path or a URL, whoever wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import torch

from autotimm.structures import InputError


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The content of a checkpoint. Code in it is refused, not run.

    Args:
        path: a path, or a URL that fsspec opens.
        map_location: as in ``torch.load``.

    Raises:
        InputError: there is no such file, or it holds other things than tensors and plain values.
    """
    try:
        with fsspec.open(str(path), "rb") as file:
            # Stated, because an environment variable of torch's can turn the default around.
            checkpoint = torch.load(file, map_location=map_location, weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint at {path}") from error
    # torch.load fails with a class of its own for each way in which a file is not what it reads.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path} cannot be read as a checkpoint of weights: {reason}") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} is not a checkpoint")
    return checkpoint
