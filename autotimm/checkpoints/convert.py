"""Convert any checkpoint of a run to one safetensors file of its weights, to publish and to load.

``python -m autotimm.checkpoints.convert CHECKPOINT OUT.safetensors``: the checkpoint is a file of
DDP or FSDP, or a folder of DeepSpeed, whose parts are joined to float32 weights. If the run kept an
average of the weights, the file contains the average. No code in a checkpoint runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from autotimm.checkpoints.sources import read_source
from autotimm.files import urls
from autotimm.redaction import guard_process
from autotimm.structures import InputError
from autotimm.tasks.checkpoint import weights_of
from autotimm.tasks.weights import write_weights


def convert(checkpoint: str | Path, out: str | Path) -> Path:
    """Write the weights of ``checkpoint`` to ``out``, which ``load_from_checkpoint`` can load.

    Args:
        checkpoint: a file or URL, a folder that DeepSpeed has written, or ``torchvision/<name>``.
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
    content = read_source(checkpoint)
    if not isinstance(content.get("hyper_parameters"), dict):
        raise InputError(f"{checkpoint} has no settings of a model: it is not of this package")
    write_weights(content, weights_of(content), out)
    return out


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
