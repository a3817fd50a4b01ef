"""Read checkpoints safely from a path or a URL, and build models from them.

Only weights and plain values are read, because a checkpoint may come from anyone.
"""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from autotimm.augmentation.transforms import INTERPOLATIONS, RESIZES
from autotimm.data import options
from autotimm.files import remote, urls
from autotimm.files.checksums import DamagedError
from autotimm.images.depth import checked_range
from autotimm.lightning_private import INSTANTIATOR
from autotimm.plain import WrongTypeError
from autotimm.structures import UPPER_BITS, InputError, Preprocessing
from autotimm.tasks import torchvision_weights
from autotimm.tasks.archive import read_archive
from autotimm.tasks.missing import missing_checkpoint
from autotimm.tasks.weights import is_safetensors, read_weights

_Model = TypeVar("_Model", bound=LightningModule)

EMA = "ema"
"""The key in a checkpoint of the averaged weights, a dict of ``decay`` and ``state_dict``."""


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a Lightning checkpoint, a safetensors file that was converted from one, or a state dict
    of a detector of torchvision's.

    Files that contain code are refused, and the code does not run. A file with a changed or missing
    byte is refused too; a file without a checksum, as older versions of this package and other
    programs write them, causes a warning.

    Args:
        path: a path, a URL (http(s) and S3 are downloaded, fsspec opens others), or
            ``torchvision/<name>`` for published weights.
        map_location: as in ``torch.load``.

    Raises:
        InputError: the file does not exist, is damaged, is not a checkpoint, or contains anything
            but tensors and plain values.
    """
    name = urls.shown(str(path))
    if str(path).startswith(torchvision_weights.PREFIX) and not Path(path).exists():
        return torchvision_weights.download(str(path))
    checkpoint = read_content(path, map_location)
    if torchvision_weights.is_state(checkpoint):
        return torchvision_weights.as_checkpoint(checkpoint, name)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise InputError(
            f"{name} is not a checkpoint of a trained model: it has no state_dict (weights of a "
            "backbone alone are for pretrained=<file>)"
        )
    for key in ("hyper_parameters", "datamodule_hyper_parameters"):
        settings = checkpoint.get(key)
        if isinstance(settings, dict) and INSTANTIATOR in settings:
            raise InputError(
                f"{name} names code to run ({settings[INSTANTIATOR]!r} as {INSTANTIATOR}), "
                f"which was not run: the file does not come from this package"
            )
    return checkpoint


def read_content(path: str | Path, map_location: Any = "cpu") -> Any:
    """Read what a file of torch's or a safetensors file of this package holds, whatever it is.

    Every reader of weights calls it, so that no file is used whose bytes have changed.

    Args:
        path: a path, or a URL as in :func:`read_checkpoint`.
        map_location: as in ``torch.load``.

    Raises:
        InputError: as in :func:`read_checkpoint`, except that any content is returned.
    """
    name = urls.shown(str(path))
    content: Any
    try:
        with remote.opened(path) as file:
            head = file.read(9)
            file.seek(0)
            if is_safetensors(head):
                checked, content = read_weights(file.read())
            else:
                content, checked = read_archive(file, map_location)
    except DamagedError as error:
        raise InputError(f"{name} is damaged ({error}): give another checkpoint") from error
    except InputError as error:
        if str(error).startswith(f"{name}: "):  # a server's refusal
            raise
        raise InputError(f"{name} {error}") from error
    except FileNotFoundError as error:
        raise InputError(missing_checkpoint(name)) from error
    except IsADirectoryError as error:
        raise InputError(
            f"{name} is a folder, as DeepSpeed's checkpoints are: a run resumes from it with the "
            f"same strategy=deepspeed_stage_<n>; for anything else, python -m "
            f"autotimm.checkpoints.convert {name} OUT.safetensors converts it to one file"
        ) from error
    except pickle.UnpicklingError as error:
        # torch's own message also advises loading the file without protection.
        raise InputError(
            f"{name} is not a checkpoint of weights and plain values: it is damaged, or carries "
            f"code, which was not run"
        ) from error
    # torch.load raises a different exception for each kind of unreadable file.
    except Exception as error:
        raise InputError(
            f"{name} cannot be read as a checkpoint ({type(error).__name__}): it is truncated or "
            f"another kind of file"
        ) from error
    if not checked:
        _warn_unchecked(name)
    return content


@cache
def _warn_unchecked(name: str) -> None:
    """Warn of a file without a checksum, once in a process."""
    rank_zero_warn(
        f"{name} has no checksum, so a changed byte in it would not be found: an older version or "
        f"another program wrote it"
    )


def model_of(
    kind: type[_Model],
    checkpoint: dict[str, Any],
    name: str,
    map_location: str | torch.device | None,
    strict: bool,
    overrides: dict[str, Any],
) -> _Model:
    """Build the model of a checkpoint, uncompiled unless ``overrides`` say otherwise.

    Args:
        kind: the model's class.
        checkpoint: the result of :func:`read_checkpoint`.
        name: the checkpoint's name in messages.
        map_location: the device of the model; the CPU if None.
        strict: whether the checkpoint must hold every weight.
        overrides: constructor arguments that replace those in the checkpoint.

    Raises:
        InputError: this is not a checkpoint of the class, or the device does not exist.
    """
    settings = checkpoint.get("hyper_parameters")
    if not isinstance(settings, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{name} is not a checkpoint of {kind.__name__}")
    of_torchvision = settings.get("layout") == "torchvision"
    if of_torchvision and not any("network.head." in str(key) for key in checkpoint["state_dict"]):
        raise InputError(
            f"{name} has no FCOS head: training can start from it (--weights), and that model can "
            f"predict"
        )
    # The weights come from the checkpoint, so do not download pretrained ones.
    settings = {**settings, "pretrained": False, "compile_model": False, **overrides}
    try:
        model = kind(**settings)
    except WrongTypeError as error:
        raise InputError(f"{name} is not a checkpoint of {kind.__name__} ({error})") from error
    except InputError:
        raise
    # Other unusable settings fail where they are first used.
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{name} is not a checkpoint of {kind.__name__} ({error})") from error
    model.on_load_checkpoint(checkpoint)
    try:
        model.load_state_dict(checkpoint["state_dict"], strict=strict)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    try:
        return model.to(map_location or "cpu")
    except (RuntimeError, AssertionError, TypeError) as error:  # torch does not know or see it
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(f"map_location={map_location!r} is not available: {reason}") from error


def weights_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The weights to use and to publish: the average (``ema``) if there is one, else the trained
    weights.

    Raises:
        InputError: the average is damaged.
    """
    average = checkpoint.get(EMA)
    if average is None:
        return checkpoint["state_dict"]
    if not isinstance(average, dict) or not isinstance(average.get("state_dict"), dict):
        raise InputError("the checkpoint's average of the weights (ema) is damaged")
    return average["state_dict"]


def preprocessing_of(checkpoint: dict[str, Any]) -> Preprocessing:
    """The preprocessing that a checkpoint was trained with.

    Raises:
        InputError: the saved values are invalid.
    """
    saved = checkpoint.get("preprocessing")
    if saved is None:  # old checkpoints do not have it, and were trained with the default
        return Preprocessing(pixel_range=UPPER_BITS)
    try:
        mean, std, how = saved["mean"], saved["std"], saved["interpolation"]
        # Older checkpoints lack these two.
        size, resize = saved.get("image_size"), saved.get("resize", "letterbox")
        pixel_range = saved.get("pixel_range", UPPER_BITS)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"the checkpoint's preprocessing is {saved!r}: it is damaged") from error
    return Preprocessing(
        options.three("the checkpoint's mean", mean),
        options.three("the checkpoint's std", std, above=0),
        options.one_of("the checkpoint's interpolation", how, tuple(INTERPOLATIONS)),
        None if size is None else options.canvas(size, "the checkpoint's image_size"),
        options.one_of("the checkpoint's resize", resize, RESIZES),
        pixel_range
        if pixel_range in (None, UPPER_BITS)
        else checked_range("the checkpoint's pixel_range", pixel_range),
    )


def categories_of(checkpoint: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The categories that a checkpoint was trained on, by label; None if it does not record them.

    Raises:
        InputError: the saved values are invalid.
    """
    saved = checkpoint.get("categories")
    if saved is None:
        return None
    if not isinstance(saved, list) or not all(
        isinstance(c, dict) and isinstance(c.get("id"), int) and isinstance(c.get("name"), str)
        for c in saved
    ):
        raise InputError(
            "the checkpoint's categories are not a list of ids and names: it is damaged"
        )
    return saved


def check_resumable(checkpoint: dict[str, Any]) -> None:
    """Raise InputError if a checkpoint lacks the optimizer's state, which resuming needs."""
    states = checkpoint.get("optimizer_states")
    if not isinstance(states, list) or not all(
        isinstance(state, dict) and isinstance(state.get("param_groups"), list) for state in states
    ):
        raise InputError(
            "the checkpoint holds weights alone, without the optimizer's state, so no run can "
            "resume from it: give one that was saved whole (save_weights_only=False)"
        )
