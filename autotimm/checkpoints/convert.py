"""Convert any checkpoint of a run to one safetensors file of its weights, to publish and to load.

``python -m autotimm.checkpoints.convert CHECKPOINT OUT.safetensors``: the checkpoint is a file of
DDP or FSDP, or a folder of DeepSpeed, whose parts are joined to float32 weights. If the run kept an
average of the weights, the file contains the average. No code in a checkpoint runs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from pathlib import Path
from typing import Any

import torch

from autotimm.checkpoints import zero_files
from autotimm.files import urls
from autotimm.redaction import guard_process
from autotimm.structures import InputError
from autotimm.tasks.checkpoint import read_checkpoint, weights_of
from autotimm.tasks.weights import write_weights


def convert(checkpoint: str | Path, out: str | Path) -> Path:
    """Write the weights of ``checkpoint`` to ``out``, which ``load_from_checkpoint`` can load.

    Args:
        checkpoint: a file or URL, or a folder that DeepSpeed has written.
        out: a path that ends in .safetensors.

    Returns:
        ``out``.

    Raises:
        InputError: the checkpoint does not exist or is unsafe, or ``out`` cannot be written.
    """
    if urls.kind(str(out)):
        raise InputError(f"{out}: is a URL, but is written on this machine: give a path")
    out = Path(out)
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: the file to write has to end in .safetensors")
    content = from_zero(Path(checkpoint)) if Path(checkpoint).is_dir() else None
    content = content or read_checkpoint(checkpoint)
    if not isinstance(content.get("hyper_parameters"), dict):
        raise InputError(f"{checkpoint} has no settings of a model: it is not of this package")
    write_weights(content, weights_of(content), out)
    return out


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


def main(arguments: list[str] | None = None) -> None:
    """The command line. It prints errors as one line and exits with 2."""
    parser = argparse.ArgumentParser(
        prog="python -m autotimm.checkpoints.convert",
        description="The weights of a checkpoint as one safetensors file.",
    )
    parser.add_argument("checkpoint", help="a .ckpt file or URL, or a folder of DeepSpeed's")
    parser.add_argument("out", help="the file to write, <name>.safetensors")
    guard_process()
    given = parser.parse_args(arguments)
    try:
        print(convert(given.checkpoint, given.out))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
