"""Earlier runs: which of them ``ckpt_path=last`` resumes, and whether a run is finished.

Invariants: no clock counts; no run of another model is resumed, and in training no run of other
data; a message names each run that is passed over, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from autotimm.checkpoints.resume import newest
from autotimm.tasks.checkpoint import read_content
from autotimm.tasks.structure import STRUCTURE, different
from autotimm.training.early_stopping import StopEarly
from autotimm.training.newest_link import is_link_to_newest
from autotimm.training.run_record import order_of, read_record

LAST = "last"
"""The checkpoint path that stands for the newest checkpoint of the newest run."""
_LIMITS = "--trainer.max_epochs, --trainer.max_steps or --patience"
_OF_THE_WEIGHTS = (*STRUCTURE, "num_classes")
"""Settings of a model without which its weights do not fit another."""


class FinishedError(Exception):
    """A fit would resume a run of which no step is left.

    Args:
        checkpoint: of the run.
        done: how far it got, as :func:`finished` says.
    """

    def __init__(self, checkpoint: Any, done: str) -> None:
        super().__init__(
            f"{checkpoint} is of a finished run ({done}): nothing is left to train; a larger "
            f"{_LIMITS} trains on, and --weights starts a new run from what it has learnt"
        )


def newest_below(
    root: str | Path, wanted: Mapping[str, Any] | None = None
) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of the newest run below ``root`` that has any and fits.

    The newest run is the one of the highest number: no clock counts.

    Args:
        root: the folder that contains the runs.
        wanted: what ``run.json`` has to say of a run, as :func:`identity` returns it; None takes
            any run. Entries that a record of an older version lacks are not compared.

    Returns:
        The checkpoint, or None if there is none; and for each newer run that does not fit a few
        words: its folder and the difference.
    """
    runs = {path.parents[1] for path in Path(root).glob("**/checkpoints/*.ckpt")}
    others: list[str] = []
    for run in sorted(runs, key=order_of, reverse=True):
        if is_link_to_newest(root, run):
            continue
        if wanted is not None and (other := _difference(read_record(run), wanted)):
            others.append(f"{run} ({other})")
        elif path := newest(run / "checkpoints"):
            return path, others
    return None, others


def identity(model: Any, data: str | None) -> dict[str, Any]:
    """What two runs have in common if one can resume the other.

    Args:
        model: of the run.
        data: the fingerprint of the samples to train on; None not to compare them.
    """
    settings = dict(getattr(model, "hparams", {}))
    known = {key: settings[key] for key in _OF_THE_WEIGHTS if key in settings}
    return {"model": known} | ({} if data is None else {"data": data})


def _difference(record: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """How the run of a record differs from what is wanted, in a few words; empty if it does not."""
    settings = record.get("settings")
    known = settings.get("model") if isinstance(settings, dict) else None
    wrong = different(wanted["model"], known, _OF_THE_WEIGHTS) if isinstance(known, dict) else {}
    for key, value in wrong.items():
        return f"{key} {value}, here {wanted['model'][key]}"
    if "data" in wanted and record.get("data", wanted["data"]) != wanted["data"]:
        return "other training data"
    return ""


def finished(
    checkpoint: Path, max_epochs: int | None, max_steps: int, stop: StopEarly | None = None
) -> str:
    """How far the run of a checkpoint got, if no step of a fit is left; else an empty text.

    Args:
        checkpoint: a file that a fit saved. A folder of DeepSpeed's or FSDP's does not say it.
        max_epochs: of the trainer; None or -1 for no limit.
        max_steps: of the trainer; -1 for no limit.
        stop: what ends the trainer's fit early.

    Raises:
        InputError: the file cannot be read, or carries code.
    """
    if not checkpoint.is_file():
        return ""
    try:
        content: Any = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    # torch raises a different exception for each kind of unreadable file.
    except Exception:
        content = read_content(checkpoint)  # raises the error that says why
    if not isinstance(content, dict):
        return ""
    if stop is not None and (early := stop.ended(content.get("callbacks"))):
        return early
    step = content.get("global_step", 0)
    if 0 < max_steps <= step:
        return f"{step:,} of {max_steps:,} steps"
    try:
        epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    except (KeyError, TypeError):
        return ""  # saved by another program, or without loops
    if max_epochs is not None and 0 < max_epochs <= epochs:
        return f"{epochs:,} of {max_epochs:,} epochs"
    return ""
