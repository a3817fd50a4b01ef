"""The commands that follow a fit, with the run's own paths: evaluate, predict, or resume."""

from __future__ import annotations

import shlex
from pathlib import Path

from autotimm.outputs.curves import PICTURE

CONFIG = "config.yaml"
_CHECKPOINTS, _PICTURES = "checkpoints", "pictures"


def after_fit(run: Path, checkpoint: str | None, data: str | None) -> str:
    """The lines to print after a fit that came to its end.

    Args:
        run: its folder.
        checkpoint: the best one, or else the last one; None if nothing was saved.
        data: the folder or URL of the data; None if the run had no data module of ours.
    """
    lines = [f"run: {run}"]
    seen = [f"{run / PICTURE}"] if (run / PICTURE).exists() else []
    seen += [f"{run / _PICTURES}/"] if (run / _PICTURES).exists() else []
    if seen:
        lines.append(f"look at: {', '.join(seen)}")
    if checkpoint is not None:
        model = f"--checkpoint {shlex.quote(_by_link(run, checkpoint))}"
        if data is not None:
            lines.append(f"  autotimm evaluate {model} --data {shlex.quote(data)}")
        lines.append(f"  autotimm predict PHOTOS {model} --out found/")
    return "\n".join(lines)


def _by_link(run: Path, checkpoint: str) -> str:
    """The path of the link ``best.ckpt`` or ``last.ckpt`` to a checkpoint, if a run has one."""
    for name in ("best.ckpt", "last.ckpt"):
        link = run / _CHECKPOINTS / name
        if link.exists() and link.resolve() == Path(checkpoint).resolve():
            return str(link)
    return checkpoint


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
