"""Refuse arguments of AutoTrainer that Lightning accepts, but that would not do what they say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from autotimm.files import urls
from autotimm.strategies import choice
from autotimm.structures import InputError

PRECISIONS = {"None", "16", "bf16", "32", "32-true", *choice.MIXED}


def check_compatible(
    use_distributed_sampler: bool, precision: Any, timeout_minutes: float, given: Mapping[str, Any]
) -> None:
    """Raise InputError for arguments that do not work with this package's data and models.

    Args:
        use_distributed_sampler, precision, timeout_minutes: arguments of AutoTrainer.
        given: the user's arguments of ``lightning.Trainer``, by name.
    """
    if use_distributed_sampler:
        raise InputError(
            "use_distributed_sampler=True would divide the samples among the ranks twice: leave it "
            "out"
        )
    if given.get("sync_batchnorm"):
        raise InputError(
            "sync_batchnorm=True would remove the activations of timm's norms: give the "
            "model backbone_norm='sync'"
        )
    if str(precision) not in PRECISIONS:
        raise InputError(
            f"precision={precision!r} does not suit this model, whose losses need float32: "
            f"take 16-mixed, bf16-mixed or 32-true"
        )
    if not 0 < timeout_minutes < 1e6:
        raise InputError(f"timeout_minutes={timeout_minutes} must be a positive number")


def check_numbers(given: Mapping[str, Any]) -> None:
    """Raise InputError for invalid numbers, and for those with which nothing is trained.

    Args:
        given: the user's arguments of ``lightning.Trainer``, by name.
    """
    for counted in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if (number := given.get(counted)) is not None and number < 1:
            raise InputError(f"{counted}={number} must be at least 1")
    if (norm := given.get("gradient_clip_val")) is not None and not norm >= 0:
        raise InputError(f"gradient_clip_val={norm} must be 0 or more")
    if given.get("val_check_interval") == 0:
        raise InputError(
            "val_check_interval=0 must be above 0: limit_val_batches=0 switches validation off"
        )
    # Such a fit would end at once and seem to succeed.
    for length in ("max_epochs", "max_steps"):
        if given.get(length) == 0:
            raise InputError(f"{length}=0 trains nothing: give at least 1, or -1 for no limit")
    if given.get("limit_train_batches") == 0:
        raise InputError("limit_train_batches=0 trains nothing: leave it out, or give at least 1")
    for length in ("max_time", "val_check_interval"):
        _check_time(length, given.get(length))
    if (time := given.get("max_time")) is not None and _is_no_time(time):
        raise InputError(f"max_time={time!r} trains nothing: give more, or leave it out")


def runs_folder(default_root_dir: str | Path | None) -> str | Path:
    """The folder that contains the folders of the runs; InputError for a URL."""
    root = default_root_dir or "runs"
    if urls.kind(str(root)):
        raise InputError(
            f"default_root_dir={urls.shown(str(root))}: runs are written into a folder: give "
            f"one on a local or mounted disk"
        )
    return root


def _check_time(name: str, given: Any) -> None:
    """Raise InputError for a text or dict that is not a length of time, which Lightning names
    otherwise or not at all."""
    if isinstance(given, str) and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", given.strip()):
        raise InputError(f"{name}={given!r} must be days, hours, minutes, seconds: DD:HH:MM:SS")
    if isinstance(given, Mapping):
        try:
            timedelta(**given)
        except TypeError as error:
            raise InputError(f"{name}={given!r} is no length of time ({error})") from error


def _is_no_time(given: Any) -> bool:
    if isinstance(given, str):
        return re.fullmatch(r"[0:]+", given) is not None
    if isinstance(given, Mapping):
        return not any(given.values())
    return isinstance(given, timedelta) and given <= timedelta(0)


def one_device(devices: list[int] | str | int, num_nodes: int) -> bool:
    """Whether a run with these arguments of a trainer has one process."""
    if num_nodes > 1:
        return False
    if devices in ("auto", -1, "-1"):
        return torch.cuda.device_count() <= 1
    return devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
