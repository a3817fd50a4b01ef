"""The commands that follow a fit: to evaluate, predict or resume, with the run's own paths."""

from __future__ import annotations

import shlex
from pathlib import Path

CONFIG = "config.yaml"


def after_fit(run: Path, checkpoint: str | None, data: str | None) -> str:
    """The lines to print after a fit that came to its end.

    Args:
        run: its folder.
        checkpoint: the best one, or else the last one; None if nothing was saved.
        data: the folder or URL of the data; None if the run had no data module of ours.
    """
    lines = [f"run: {run}"]
    if checkpoint is not None:
        model = f"--checkpoint {shlex.quote(checkpoint)}"
        if data is not None:
            lines.append(f"  autotimm evaluate {model} --data {shlex.quote(data)}")
        lines.append(f"  autotimm predict PHOTOS {model} --out found/")
    return "\n".join(lines)


def resume_command(run: Path, checkpoint: Path, world_size: int) -> str:
    """The command that resumes from a checkpoint; empty if no command began the run.

    Args:
        run: the run's folder.
        checkpoint: its path.
        world_size: processes of the run, all on this node.
    """
    config = run / CONFIG
    if not config.is_file():
        return ""
    launch = f"torchrun --standalone --nproc-per-node {world_size} -m " if world_size > 1 else ""
    flags = f"--config {shlex.quote(str(config))} --ckpt_path {shlex.quote(str(checkpoint))}"
    return f"{launch}autotimm fit {flags}"
