"""Whether the files and folders that a command names are there, asked before torch is imported.

The lines are those of the code that reads them (``tests/cli/test_early_checks.py`` compares them).
Paths on servers are left to it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from autotimm.cli.near_paths import near_path
from autotimm.files import urls
from autotimm.structures import InputError
from autotimm.tasks.missing import missing_checkpoint, run_for_checkpoint
from autotimm.training.run_name import check_free, check_name, launch_of

_OF_TORCHVISION = "torchvision/"  # tasks/torchvision_weights.py, which needs torch
_TRUTHS = ("true", "false", "yes", "no", "on", "off")
_NAMED = ("last", "best", "hpc", "")
"""Values of ``--ckpt_path`` that are no paths."""


def check_run(verb: str, settings: Mapping[str, Any], help_flag: str) -> None:
    """Checks the paths of a command that Lightning's command line runs.

    Args:
        verb: such as ``fit``.
        settings: by the names of the flags without dashes.
        help_flag: the flag that lists all flags, for messages.

    Raises:
        InputError: data or weights are not there, or none are given and the verb needs them, or a
            new run cannot have its name.
    """
    data, checkpoint = settings.get("data.data_dir"), _given(settings.get("ckpt_path"))
    if data is None:
        raise InputError(f"--data.data_dir must be given ({help_flag} lists the flags)")
    if verb in ("validate", "test", "predict") and not checkpoint:
        raise InputError(f"{verb} needs --ckpt_path: without it the weights are random")
    check_data(data, "data_dir: ")
    if checkpoint is not None and checkpoint not in _NAMED:
        check_checkpoint(checkpoint, resumes=verb == "fit")
    check_run_name(settings)
    weights = _given(settings.get("weights"))
    if weights and checkpoint is None:  # a run that resumes does not read them
        check_checkpoint(weights)
    pretrained = settings.get("model.init_args.pretrained")
    if isinstance(pretrained, str) and pretrained.lower() not in _TRUTHS and not exists(pretrained):
        raise InputError(f"pretrained={pretrained!r} is not a file")


def check_run_name(settings: Mapping[str, Any], launch_id: str | None = None) -> None:
    """Checks that a new run can have the name that a command gives it, if it gives one.

    Args:
        settings: by the names of the flags without dashes.
        launch_id: of the torchrun that started this process, whose own run may have the name: it
            goes on after a restart.

    Raises:
        InputError: it cannot.
    """
    if not (name := _given(settings.get("trainer.run_name"))):
        return
    root = _given(settings.get("trainer.default_root_dir")) or "runs"
    check_name(root, str(name))
    if launch_id is None or launch_of(root, str(name)) != launch_id:
        check_free(root, str(name))


def _given(value: Any) -> Any:
    """A value of a flag or a config; None for the words by which YAML says that there is none."""
    return None if str(value).lower() in ("null", "~", "none", "") else value


def check_data(data: Any, name: str = "") -> None:
    """Checks that a folder of data is there.

    Args:
        data: its path or URL.
        name: what the line begins with.

    Raises:
        InputError: it is not there, or the URL cannot be one of data.
    """
    folder = urls.locate(str(data)).folder
    if folder is not None and not os.path.lexists(folder):
        raise InputError(f"{name}{folder}: no such folder{near_path(str(folder))}")


def check_checkpoint(path: Any, resumes: bool = False) -> None:
    """Checks that a file or folder of weights is there.

    Args:
        path: as it was given.
        resumes: whether a run is to resume from it.

    Raises:
        InputError: it is not, or is the folder of a run.
    """
    if not exists(path):
        raise InputError(missing_checkpoint(str(path)))
    if line := run_for_checkpoint(str(path), resumes):
        raise InputError(line)


def check_images(names: Sequence[str]) -> None:
    """Checks that at least one of several images is there.

    Raises:
        InputError: none is.
    """
    if not any(map(exists, names)):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise InputError(f"{', '.join(names[:3])}{more}: no such image or folder")


def exists(path: Any) -> bool:
    """Whether a path is there; also True for what is no plain path: a URL, a model's name."""
    text = str(path)
    if text.startswith(_OF_TORCHVISION):
        return True
    return ":" in text or "\0" in text or text.startswith("~") or os.path.lexists(text)
