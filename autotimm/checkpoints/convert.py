"""From any checkpoint of a run to one safetensors file of its weights, to publish and to load.

``python -m autotimm.checkpoints.convert CHECKPOINT OUT.safetensors``: a file of DDP or FSDP, or a
folder of DeepSpeed's, whose ranks' shares are joined to float32 weights. Where the
run kept an average of the weights, the average is taken. No code in a checkpoint runs.
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
from autotimm.structures import InputError
from autotimm.tasks.checkpoint import read_checkpoint, weights_of
from autotimm.tasks.weights import write_weights


def convert(checkpoint: str | Path, out: str | Path) -> Path:
    """Writes the weights of ``checkpoint`` as ``out``, which ``load_from_checkpoint`` loads.

    Args:
        checkpoint: a file or URL, or a folder that DeepSpeed wrote.
        out: a path that ends in .safetensors.

    Returns:
        ``out``.

    Raises:
        InputError: no such checkpoint, or one that cannot be read safely, or ``out`` cannot be
            written.
    """
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
    """What a file of DDP's would hold, less the state of the optimizer, of a DeepSpeed checkpoint.

    Raises:
        InputError: it is none, or it holds code or is damaged.
    """
    zero_files.check_folder(folder)
    # Not at the top: it takes seconds, and is an extra.
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()):  # it tells of every step
        weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=zero_files.TAG)
    first = min((folder / zero_files.TAG).glob("*model_states.pt"), key=lambda path: path.name)
    with torch.serialization.safe_globals(zero_files.of_deepspeed()):
        rest = torch.load(first, map_location="cpu", mmap=True, weights_only=True)
    if zero_files.stage_of(folder) < 3:  # of stage 1, frozen weights are nowhere else
        weights = {**rest["module"], **weights}
    return {**rest, "state_dict": weights}


def main(arguments: list[str] | None = None) -> None:
    """The command line; exits with 2 after one line on what cannot be converted."""
    parser = argparse.ArgumentParser(
        prog="python -m autotimm.checkpoints.convert",
        description="The weights of a checkpoint as one safetensors file.",
    )
    parser.add_argument("checkpoint", help="a .ckpt file or URL, or a folder of DeepSpeed's")
    parser.add_argument("out", help="the file to write, <name>.safetensors")
    given = parser.parse_args(arguments)
    try:
        print(convert(given.checkpoint, given.out))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
