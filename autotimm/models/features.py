"""What a timm model offers a feature pyramid, found by trying it without memory or arithmetic.

A model's own tables do not say whether it takes images of any size, which axis its channels are
on or which of its weights a map does not depend on. A twin on the meta device does: shapes alone
pass through it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.models import group_parameters
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from autotimm.structures import InputError

STRIDES = (8, 16, 32)
"""Of the maps that a pyramid starts from, where the model has them."""

FINE = 4
"""The stride of the map that small masks are cut from, where the model has it."""

_ANY_SIZE = {  # by the file of timm that defines a model: what it takes to give up a fixed size
    "deit": {"dynamic_img_size": True},
    "eva": {"dynamic_img_size": True},
    "swin_transformer": {"strict_img_size": False},
    "swin_transformer_v2": {"strict_img_size": False},
    "swin_transformer_v2_cr": {"strict_img_size": False},
    "vision_transformer": {"dynamic_img_size": True},
    "vision_transformer_hybrid": {"dynamic_img_size": True},
    "vitamin": {"dynamic_img_size": True},
}
_GOOD = ("resnet50", "convnext_tiny", "swin_tiny_patch4_window7_224", "vit_small_patch16_dinov3")
_SIDE = 256  # of the canvases to try, or more
_PATCH = 16  # of plain transformers whose own patches tile no multiple of 32
# How a model says that it cannot do what was asked: each in its own way.
_FAILURES: tuple[type[Exception], ...] = (AssertionError, AttributeError, LookupError)
_FAILURES += (RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Features:
    """The maps to take from a model.

    Attributes:
        options: for ``timm.create_model``, besides the name and the weights.
        strides: of the maps, finest first: those of 8, 16 and 32 that the model has, and of 4 where
            that was asked for. A plain transformer has one, and it is all that there is.
        channels: of each map.
        plain: whether all layers of the model work at this one stride.
        multiple: the canvas is padded to multiples of this many pixels (32: not at all).
        channels_last: maps come as [B, h, w, C].
        unused: parameters that no map depends on.
    """

    options: dict[str, Any]
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    plain: bool
    multiple: int
    channels_last: bool
    unused: frozenset[str]


class _NormedMaps(FeatureGetterNet):
    """timm's getter of maps, through the model's final norm: so they were made to be given away."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(model, norm=True, **options)


class _UnusableError(Exception):
    """The reason why a model cannot be a backbone."""


def original_name(name: str, known: set[str]) -> str | None:
    """What the whole model calls a parameter of timm's feature extractor, None if it has it not.

    Extractors hold the model in a module of their own ("body.stem.weight"), or join the first two
    parts of a name ("stages_0.blocks.0.gamma").
    """
    head, dot, rest = name.partition(".")
    joined = (f"{head[:i]}.{head[i + 1 :]}{dot}{rest}" for i, c in enumerate(head) if c == "_")
    return next((n for n in (name, rest, *joined) if n in known), None)


def layers(whole: nn.Module, parameters: Iterable[str], coarse: bool) -> dict[str, int] | None:
    """The number of the layer that each of an extractor's ``parameters`` is in, by timm's
    ``group_matcher``; those that the whole model has not are left out.

    Args:
        whole: the model that the extractor is of.
        parameters: their names in the extractor.
        coarse: count the stem and then stages, or blocks of a plain transformer, rather than all
            that timm tells apart.

    Returns:
        None where timm does not tell.
    """
    matcher: Any = getattr(whole, "group_matcher", None)
    if not callable(matcher):
        return None
    of_whole = group_parameters(whole, matcher(coarse=coarse), reverse=True)
    original = {one: original_name(one, set(of_whole)) for one in parameters}
    return {one: of_whole[o] for one, o in original.items() if o is not None}


def first_stages(name: str, parameters: Sequence[str], count: int) -> set[str]:
    """Of ``parameters`` of a model's extractor those in its first stages.

    Raises:
        InputError: timm does not tell the stages of this model, or it has no more than ``count``.
    """
    with torch.device("meta"):
        whole = timm.create_model(name)
    stages = layers(whole, parameters, coarse=True)
    if stages is None:
        raise InputError(
            f"frozen_stages: timm does not tell the stages of {name!r}: leave it out, or freeze "
            f"all of it with freeze_backbone"
        )
    last = max(stages.values())
    if count > last:
        raise InputError(
            f"frozen_stages={count}: {name} has {last + 1}, the stem included: take at most "
            f"{last}, or freeze_backbone for all of it"
        )
    return {one for one, stage in stages.items() if stage < count}


def features(name: str, fine: bool = False) -> Features:
    """The maps of a timm model.

    Args:
        name: timm's name of it.
        fine: take the map at stride 4, too, where there is one.

    Raises:
        InputError: there is no such model, or it cannot be a backbone: with others that can.
    """
    if not timm.is_model(name):
        near = ", ".join(_near(name))
        raise InputError(
            f"backbone={name!r} is not a timm model (see timm.list_models()); near it: {near}"
        )
    try:
        return _features(name, fine)
    except _UnusableError as error:
        raise InputError(
            f"backbone={name!r} {error}; near it that work: {', '.join(_near(name))}"
        ) from error


def _near(name: str, most: int = 2) -> list[str]:
    """Models of similar names that work, and some that are a good choice for most."""
    stem = name.split(".")[0]
    found: list[str] = []
    failed = {_family(name)} if timm.is_model(name) else set()
    for other in difflib.get_close_matches(stem, timm.list_models(), n=12, cutoff=0.5):
        if len(found) == most:
            break
        # What its next of kin cannot do, it cannot either: trying takes seconds.
        if _family(other) in failed:
            continue
        try:
            _features(other, fine=False)
            found.append(other)
        except _UnusableError:
            failed.add(_family(other))
    return list(dict.fromkeys([*found, *_GOOD]))[:4]


def _family(name: str) -> str:
    return timm.model_entrypoint(name.split(".")[0]).__module__.rpartition(".")[2]


@lru_cache(maxsize=64)
def _features(name: str, fine: bool) -> Features:
    options: dict[str, Any] = {"features_only": True, **_ANY_SIZE.get(_family(name), {})}
    info = _info(name, options)
    strides = [entry["reduction"] for entry in info]
    plain = len(set(strides)) == 1
    if plain:
        options["feature_cls"] = _NormedMaps
        if strides[0] not in STRIDES:
            options |= _other_patches(name, options, strides[0])
            strides = [_PATCH] * len(strides)
    # Where several maps share a stride the last one is the deepest.
    indices = {stride: i for i, stride in enumerate(strides) if stride in (FINE, *STRIDES)}
    if not (fine and not plain):
        indices.pop(FINE, None)
    if len(indices.keys() - {FINE}) < (1 if plain else 2):
        raise _UnusableError(
            f"has feature maps at strides {sorted(set(strides))}, but a feature pyramid needs "
            f"two of {STRIDES} at least"
        )
    options["out_indices"] = tuple(indices.values())
    return _tried(name, options, tuple(indices), plain)


def _info(name: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(name, **options)
        return list(model.feature_info.info)
    except _FAILURES as error:
        raise _UnusableError(f"gives no feature maps ({_first_line(error)})") from error


def _other_patches(name: str, options: dict[str, Any], patch: int) -> dict[str, Any]:
    """Options that give a model patches of ``_PATCH`` pixels: timm resamples the weights of its
    first layer. The image size is that at which they are as many, so that its table of positions
    stays what it is."""
    with torch.device("meta"):
        model: Any = timm.create_model(name, **options)
        _, height, width = model.pretrained_cfg["input_size"]
        size = (height // patch * _PATCH, width // patch * _PATCH)
        more: dict[str, Any] = {"patch_size": _PATCH, "img_size": size}
        try:
            timm.create_model(name, **options, **more)
        except _FAILURES as error:
            raise _UnusableError(
                f"has maps at stride {patch} only, not at one of {STRIDES}"
            ) from error
    return more


def _tried(name: str, options: dict[str, Any], strides: tuple[int, ...], plain: bool) -> Features:
    with torch.device("meta"):
        twin: Any = timm.create_model(name, **options).train()
        multiple, reason = STRIDES[-1], None
        found = None
        for multiple in (STRIDES[-1], *twin.pretrained_cfg["input_size"][1:2]):
            short = math.ceil(_SIDE / multiple) * multiple
            long = short + multiple
            try:
                found = [_maps(twin, size, strides) for size in ((short, long), (long, short))]
                break
            except _FAILURES as error:
                reason = reason or error
        if found is None or multiple % STRIDES[-1]:
            raise _UnusableError(f"does not take images of any size ({_first_line(reason)})")
        maps, channels_last = found[0]
        channels = tuple(twin.feature_info.channels())
    used = _leaves(maps)
    unused = frozenset(n for n, parameter in twin.named_parameters() if parameter not in used)
    return Features(options, strides, channels, plain, multiple, channels_last, unused)


def _maps(
    twin: nn.Module, size: tuple[int, int], strides: Sequence[int]
) -> tuple[list[Tensor], bool]:
    """The maps of images of a size, and whether their channels come last."""
    maps = twin(torch.empty(2, 3, *size))
    grids = [tuple(side // stride for side in size) for stride in strides]
    if [tuple(m.shape[2:]) for m in maps] == grids:
        return maps, False
    if [tuple(m.shape[1:3]) for m in maps] == grids:
        return maps, True
    shapes = ", ".join("x".join(map(str, m.shape[1:])) for m in maps)
    raise ValueError(f"an image of {size[0]} x {size[1]} becomes {shapes}")


def _leaves(outputs: Iterable[Tensor]) -> set[Tensor]:
    """The parameters that outputs depend on, which a backward pass would give gradients to.

    Walks the autograd graph, as DDP does for the same question: a backward pass on the meta device
    takes as long as all the rest.
    """
    ahead = [output.grad_fn for output in outputs]
    seen: set[Any] = set()
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [before for before, _ in node.next_functions]
    return {node.variable for node in seen if hasattr(node, "variable")}


def _first_line(error: BaseException | None) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:90]
