"""Arguments of AutoTrainer that Lightning would take, and that a run would not be what they say."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from autotimm.structures import InputError
from autotimm.training.saving import Checkpoints


def check_numbers(given: Mapping[str, Any]) -> None:
    """Raises InputError for numbers that are none, or that train nothing.

    Args:
        given: arguments of Lightning's, by name, as far as they were given.
    """
    for counted in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if (number := given.get(counted)) is not None and number < 1:
            raise InputError(f"{counted}={number} must be at least 1")
    if (norm := given.get("gradient_clip_val")) is not None and not norm >= 0:
        raise InputError(f"gradient_clip_val={norm} must be 0 or more")
    if given.get("val_check_interval") == 0:
        raise InputError("val_check_interval=0 must be above 0: limit_val_batches=0 is never")
    # A fit would be over at once, and end as if it had gone well.
    for length in ("max_epochs", "max_steps"):
        if given.get(length) == 0:
            raise InputError(f"{length}=0 trains nothing: give at least 1, or -1 for no such end")
    if given.get("limit_train_batches") == 0:
        raise InputError("limit_train_batches=0 trains nothing: leave it out, or give at least 1")
    if (time := given.get("max_time")) is not None and _is_no_time(time):
        raise InputError(f"max_time={time!r} trains nothing: give more, or leave it out")


def tell_never_measured(given: Mapping[str, Any]) -> None:
    """Says where a run ends before the split to validate on is measured for the first time."""
    every, epochs = given.get("check_val_every_n_epoch"), given.get("max_epochs")
    if every and epochs and 0 < epochs < every:
        rank_zero_info(
            f"check_val_every_n_epoch={every}: nothing is measured in {epochs} epochs, and there "
            f"will be no best.ckpt"
        )


def _is_no_time(given: Any) -> bool:
    if isinstance(given, str):
        return re.fullmatch(r"[0:]+", given) is not None
    if isinstance(given, Mapping):
        return not any(given.values())
    return isinstance(given, timedelta) and given <= timedelta(0)


def check_saves_nothing(given: Mapping[str, Any]) -> None:
    """Raises InputError for what says when to save, and what to keep, where nothing is saved.

    Args:
        given: the arguments of ``Checkpoints``, in its order, by their names in AutoTrainer.
    """
    defaults = [one.default for one in inspect.signature(Checkpoints).parameters.values()]
    pairs = zip(given.items(), defaults, strict=True)
    if changed := [f"{name}={value}" for (name, value), default in pairs if value != default]:
        raise InputError(
            f"enable_checkpointing=False saves nothing: leave out {', '.join(changed)}"
        )
