"""Reading checkpoints: weights and plain values only, from a path or a URL, whoever wrote them; and
the model that one makes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import torch
from lightning import LightningModule

from autotimm.augmentation.transforms import INTERPOLATIONS, RESIZES
from autotimm.data import options
from autotimm.files import urls
from autotimm.lightning_private import INSTANTIATOR
from autotimm.structures import InputError, Preprocessing
from autotimm.tasks.weights import is_safetensors, read_weights

_Model = TypeVar("_Model", bound=LightningModule)

EMA = "ema"
"""The key of a checkpoint for the average of the weights: ``decay`` and ``state_dict``."""


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The content of a checkpoint of Lightning's, or of a safetensors file that was made of one.

    Code in it is refused, not run.

    Args:
        path: a path, or a URL that fsspec opens.
        map_location: as in ``torch.load``.

    Raises:
        InputError: there is no such file, or it is no checkpoint, or it holds other things than
            tensors and plain values.
    """
    name = urls.shown(str(path))
    try:
        with fsspec.open(str(path), "rb") as file:
            head = file.read(9)
            file.seek(0)
            if is_safetensors(head):
                checkpoint = read_weights(file.read())
            else:
                # Stated, because an environment variable of torch's can turn the default around.
                checkpoint = torch.load(file, map_location=map_location, weights_only=True)
    except InputError as error:
        raise InputError(f"{name} {error}") from error
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint at {name}") from error
    except IsADirectoryError as error:
        raise InputError(
            f"{name} is a folder, as DeepSpeed's checkpoints are: a run goes on from it with the "
            f"same strategy=deepspeed_stage_<n>; for anything else, python -m "
            f"autotimm.checkpoints.convert {name} OUT.safetensors makes one file of it"
        ) from error
    except pickle.UnpicklingError as error:
        # torch's own text goes on to advise loading it without the protection.
        raise InputError(
            f"{name} is not a checkpoint of weights and plain values: it is damaged, or carries "
            f"code, which was not run"
        ) from error
    # torch.load fails with a class of its own for each way in which a file is not what it reads.
    except Exception as error:
        raise InputError(
            f"{name} cannot be read as a checkpoint ({type(error).__name__}): it is cut off or "
            f"some other kind of file"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise InputError(f"{name} is not a checkpoint of a trained model: it has no state_dict")
    for key in ("hyper_parameters", "datamodule_hyper_parameters"):
        settings = checkpoint.get(key)
        if isinstance(settings, dict) and INSTANTIATOR in settings:
            raise InputError(
                f"{name} names code to be run ({settings[INSTANTIATOR]!r} as {INSTANTIATOR}), "
                f"which was not run: it does not come from this package"
            )
    return checkpoint


def model_of(
    kind: type[_Model],
    checkpoint: dict[str, Any],
    name: str,
    map_location: str | torch.device | None,
    strict: bool,
    overrides: dict[str, Any],
) -> _Model:
    """The model of a checkpoint, uncompiled unless ``overrides`` say otherwise.

    Args:
        kind: its class.
        checkpoint: what :func:`read_checkpoint` has read.
        name: of the checkpoint, in messages.
        map_location: where the model goes; the CPU if None.
        strict: whether every weight must be there.
        overrides: constructor arguments that replace those in the checkpoint.

    Raises:
        InputError: it is not a checkpoint of this class, or there is no such device.
    """
    settings = checkpoint.get("hyper_parameters")
    if not isinstance(settings, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{name} is not a checkpoint of {kind.__name__}")
    # The weights come from the checkpoint: none are to be downloaded first.
    settings = {**settings, "pretrained": False, "compile_model": False, **overrides}
    try:
        model = kind(**settings)
    except InputError:
        raise
    # Settings of the wrong kind fail wherever they are used first.
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{name} is not a checkpoint of {kind.__name__} ({error})") from error
    model.on_load_checkpoint(checkpoint)
    try:
        model.load_state_dict(checkpoint["state_dict"], strict=strict)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    try:
        return model.to(map_location or "cpu")
    except (RuntimeError, AssertionError, TypeError) as error:  # no such device, or none here
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(f"map_location={map_location!r} cannot be had: {reason}") from error


def weights_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The weights to use and to publish: their average, where the training kept one (``ema``), else
    those that were trained.

    Raises:
        InputError: the average is not what it should be.
    """
    average = checkpoint.get(EMA)
    if average is None:
        return checkpoint["state_dict"]
    if not isinstance(average, dict) or not isinstance(average.get("state_dict"), dict):
        raise InputError("the checkpoint's average of the weights (ema) is none: it is damaged")
    return average["state_dict"]


def preprocessing_of(checkpoint: dict[str, Any]) -> Preprocessing:
    """What images went through in the training of a checkpoint.

    Raises:
        InputError: it says something that cannot be.
    """
    saved = checkpoint.get("preprocessing")
    if saved is None:  # of a time when all were trained with the default
        return Preprocessing()
    try:
        mean, std, how = saved["mean"], saved["std"], saved["interpolation"]
        # Of older checkpoints these two are not known.
        size, resize = saved.get("image_size"), saved.get("resize", "letterbox")
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"the checkpoint's preprocessing is {saved!r}: it is damaged") from error
    return Preprocessing(
        options.three("the checkpoint's mean", mean),
        options.three("the checkpoint's std", std, above=0),
        options.one_of("the checkpoint's interpolation", how, tuple(INTERPOLATIONS)),
        None if size is None else options.canvas(size, "the checkpoint's image_size"),
        options.one_of("the checkpoint's resize", resize, RESIZES),
    )


def categories_of(checkpoint: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The categories that a checkpoint was trained on, by label; None if it does not say.

    Raises:
        InputError: it says something that cannot be.
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


def check_goes_on(checkpoint: dict[str, Any]) -> None:
    """Raises InputError if a checkpoint has no state of an optimizer to train on with."""
    states = checkpoint.get("optimizer_states")
    if not isinstance(states, list) or not all(
        isinstance(state, dict) and isinstance(state.get("param_groups"), list) for state in states
    ):
        raise InputError(
            "the checkpoint holds weights alone, without the optimizer's state, so that no run "
            "goes on from it: give one that was saved whole (save_weights_only=False)"
        )
