"""Read a trained model from anything that holds one: a file, a URL, a folder of DeepSpeed's."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from autotimm.checkpoints import zero_files
from autotimm.tasks.checkpoint import read_checkpoint


def read_source(source: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, with the whole weights as ``state_dict``.

    Args:
        source: a folder that DeepSpeed has written, or what ``read_checkpoint`` reads.

    Raises:
        InputError: there is no such checkpoint, it is damaged, or it contains code.
    """
    folder = Path(source)
    return from_zero(folder) if folder.is_dir() else read_checkpoint(source)


def from_zero(folder: Path) -> dict[str, Any]:
    """Read a DeepSpeed checkpoint as the content of a DDP file, without the optimizer's state.

    Raises:
        InputError: the folder is not a DeepSpeed checkpoint, is damaged, or contains code.
    """
    zero_files.check_folder(folder)
    # Imported here, because it takes seconds and DeepSpeed is optional.
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()):  # it prints many lines
        weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=zero_files.TAG)
    first = min((folder / zero_files.TAG).glob("*model_states.pt"), key=lambda path: path.name)
    with torch.serialization.safe_globals(zero_files.of_deepspeed()):
        rest = torch.load(first, map_location="cpu", mmap=True, weights_only=True)
    if zero_files.stage_of(folder) < 3:  # only here are frozen weights of stage 1
        weights = {**rest["module"], **weights}
    return {**rest, "state_dict": weights}
