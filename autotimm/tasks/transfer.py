"""Start a model from the weights of another one, whatever classes that one has.

A tensor goes where this model has one of the same name and shape. The layers that have a row for
each class, of the FCOS head and of the mask head, get the rows of the classes that both models
have, matched by name. The rows of other classes stay as they are in the new model, with the prior.
Nothing of the training is taken: no step, schedule or optimizer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autotimm.structures import InputError
from autotimm.tasks import structure
from autotimm.tasks.checkpoint import categories_of, preprocessing_of, weights_of

_PER_CLASS = ("head.classes.", "mask_head.masks.")  # the layers with a row for each class
_PREFIX = "network."
_LISTED = 12  # the most names in a message

Tensors = Mapping[str, Tensor]


class Rows(NamedTuple):
    """Which rows of a layer go where.

    Attributes:
        pairs: a row of the new model, and the row of the other one that it gets.
        kept: the names of the classes of these rows.
        new: the names of the classes whose rows start anew.
        twice: those of ``new`` whose name one of the models has more than once.
    """

    pairs: list[tuple[int, int]]
    kept: list[str]
    new: list[str]
    twice: list[str]


def match_classes(own: Sequence[str], others: Sequence[str]) -> Rows:
    """Match classes by name, ignoring case, spaces, underscores and hyphens.

    Args:
        own: the names of the new model's classes, by label.
        others: those of the other model.
    """
    mine, theirs = [_plain(name) for name in own], [_plain(name) for name in others]
    of_mine, of_theirs = Counter(mine), Counter(theirs)
    rows = Rows([], [], [], [])
    for row, (name, plain) in enumerate(zip(own, mine, strict=True)):
        if of_mine[plain] == of_theirs[plain] == 1:
            rows.pairs.append((row, theirs.index(plain)))
            rows.kept.append(name)
            continue
        rows.new.append(name)
        if of_theirs[plain]:
            rows.twice.append(name)
    return rows


def take(
    model: Any,
    checkpoint: dict[str, Any],
    name: str,
    classes: Sequence[str] | None,
    only_fitting: bool = False,
) -> str:
    """Copy the weights of a checkpoint into a model, with the preprocessing that they need.

    If the checkpoint has an average of the weights (``ema_decay``), that is copied.

    Args:
        model: an ObjectDetector or InstanceSegmentor; changed in place.
        checkpoint: the result of :func:`autotimm.tasks.checkpoint.read_checkpoint`.
        name: of the checkpoint, for messages.
        classes: the names of the model's classes, by label; None if the data do not name them.
        only_fitting: take the tensors that fit even if the models differ in more than classes.

    Returns:
        A line that says what was taken.

    Raises:
        InputError: the models differ in more than their classes and ``only_fitting`` is False, no
            tensor fits, or a number is not finite.
    """
    settings = checkpoint.get("hyper_parameters")
    theirs = _network(weights_of(checkpoint))
    if not isinstance(settings, dict) or not theirs:
        raise InputError(f"{name} does not hold the weights of a model of this package")
    own = _network(model.state_dict(keep_vars=True))
    if not only_fitting:
        _check_structure(name, model.hparams, settings)
    fitting = [key for key in own if key in theirs and _fits(key, own[key], theirs[key])]
    if not only_fitting:
        _check_tensors(name, own, theirs, fitting)
    # A few biases have the same shape in any two models.
    if not any(own[key].ndim > 1 for key in fitting if not _is_per_class(key)):
        raise InputError(f"weights: no layer of {name} fits the model: give another file")
    for key in fitting:
        if not theirs[key].isfinite().all():
            raise InputError(f"{name}: {key} is not finite: take an earlier checkpoint")
    count = next((len(theirs[key]) for key in fitting if _is_per_class(key)), None)
    rows, remark = _rows(model, classes, categories_of(checkpoint), count)
    with torch.no_grad():
        for key in fitting:
            if not _is_per_class(key):
                own[key].copy_(theirs[key])
            elif rows.pairs:
                here, there = ([*side] for side in zip(*rows.pairs, strict=True))
                own[key][here] = theirs[key][there].to(own[key])
    if any(key.startswith("backbone.") for key in fitting):
        saved = preprocessing_of(checkpoint)
        model.preprocessing = replace(
            model.preprocessing, mean=saved.mean, std=saved.std, interpolation=saved.interpolation
        )
    taken = [key for key in fitting if rows.pairs or not _is_per_class(key)]
    fresh = sorted({_part(key) for key in own} - {_part(key) for key in fitting})
    anew = [f"starting anew: {', '.join(fresh)}"] if fresh else []
    return "; ".join([f"weights: {len(taken)} of {len(own)} tensors from {name}", remark, *anew])


def _rows(
    model: Any,
    classes: Sequence[str] | None,
    categories: Sequence[Mapping[str, Any]] | None,
    count: int | None,
) -> tuple[Rows, str]:
    """The rows to take, and a remark on the classes.

    Args:
        model: that starts.
        classes: of the model, if known.
        categories: of the checkpoint, if known.
        count: the number of rows of the checkpoint's layers; None if it has no such layer.
    """
    nothing = "nothing of the class layers was taken"
    own = model.settings.num_classes
    none = Rows([], [], [], [])
    if count is None:
        return none, f"{nothing}: there is none that fits"
    if categories is not None and len(categories) != count:
        raise InputError(f"the checkpoint has {len(categories)} categories for {count} classes")
    if classes is None:  # only numbers distinguish the classes
        if own != count:
            return none, f"{nothing}: of {count} and {own} classes without names, none are the same"
        return Rows([(i, i) for i in range(own)], [], [], []), f"all {own} classes kept, by number"
    if categories is None:
        return none, f"{nothing}: the file does not name its classes"
    rows = match_classes(classes, [str(one["name"]) for one in categories])
    remarks = [f"classes kept: {_listed(rows.kept)}"] if rows.kept else []
    if not remarks:
        remarks = [f"{nothing}: no class has the name of one in the file"]
    if rows.new:
        remarks.append(f"new: {_listed(rows.new)}")
    if rows.twice:
        remarks.append(f"of these with a name that occurs twice: {_listed(rows.twice)}")
    return rows, "; ".join(remarks)


def _check_structure(name: str, own: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise InputError if settings on which the shapes of the layers depend differ."""
    wrong = structure.different(own, theirs)
    if wrong:
        raise InputError(
            f"weights: {name} has {structure.shown(wrong)}, but the model has "
            f"{structure.shown({key: own[key] for key in wrong})}: give the model those of the "
            f"file ({structure.flags(wrong)}), or --weights-only-fitting to take the tensors that "
            "fit"
        )


def _check_tensors(name: str, own: Tensors, theirs: Tensors, fitting: Sequence[str]) -> None:
    """Raise InputError if the file has a part of the network, such as the head, but not all of it.

    A part that it lacks as a whole, as detectors lack the mask head, starts anew.
    """
    there = {_part(key) for key in theirs}
    wrong = [key for key in own if _part(key) in there and key not in set(fitting)]
    if wrong:
        shape = f"{tuple(theirs[wrong[0]].shape)}" if wrong[0] in theirs else "missing"
        raise InputError(
            f"weights: {wrong[0]} is {tuple(own[wrong[0]].shape)} in the model and {shape} in "
            f"{name}{f', and {len(wrong) - 1} more differ' if len(wrong) > 1 else ''}: give the "
            f"model the file's settings, or --weights-only-fitting to take the tensors that fit"
        )


def _fits(key: str, own: Tensor, other: Tensor) -> bool:
    return own.shape[1:] == other.shape[1:] if _is_per_class(key) else own.shape == other.shape


def _is_per_class(key: str) -> bool:
    return key.startswith(_PER_CLASS)


def _part(key: str) -> str:
    """The part of the network that a tensor belongs to, such as ``head`` or ``fpn.p6``."""
    return ".".join(key.split(".")[: 2 if key.startswith("fpn.") else 1])


def _network(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of the network in a model's state dict, by their names in the network."""
    return {
        key.removeprefix(_PREFIX): value
        for key, value in state.items()
        if isinstance(key, str) and key.startswith(_PREFIX) and isinstance(value, Tensor)
    }


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
