"""The feature maps that a timm model offers, found by running it on the meta device.

timm's tables do not say whether a model accepts images of any size, which axis holds its channels,
or which parameters the maps do not depend on. A copy of the model on the meta device shows this
without memory or arithmetic, because only shapes pass through it.
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
"""The strides of the maps that a pyramid starts from, if the model has them."""

FINE = 4
"""The stride of the map from which small masks are pooled, if the model has it."""

_ANY_SIZE = {  # by the timm file that defines a model: the option that allows any image size
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
_SIDE = 256  # the minimum side of the canvases to try
_PATCH = 16  # the patch size for plain transformers whose own stride is not one of STRIDES
# The exceptions with which models reject options or image sizes.
_FAILURES: tuple[type[Exception], ...] = (AssertionError, AttributeError, LookupError)
_FAILURES += (RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Features:
    """The feature maps of a model that a pyramid starts from.

    Attributes:
        options: for ``timm.create_model``, besides the name and the weights.
        strides: of the maps, finest first: those of 8, 16 and 32 that the model has, and 4 if
            requested. A plain transformer has a single one.
        channels: of each map.
        plain: whether all layers of the model work at one stride.
        multiple: the canvas is padded to multiples of this many pixels; 32 means no padding.
        channels_last: whether the model returns maps as [B, h, w, C].
        unused: the names of the parameters that no map depends on.
    """

    options: dict[str, Any]
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    plain: bool
    multiple: int
    channels_last: bool
    unused: frozenset[str]


class _NormedMaps(FeatureGetterNet):
    """timm's extractor, with the final norm applied to the maps, as in the model's own output."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(model, norm=True, **options)


class _UnusableError(Exception):
    """The reason why a model cannot be a backbone."""


def original_name(name: str, known: set[str]) -> str | None:
    """The full model's name of a parameter of timm's feature extractor; None if it has none.

    An extractor wraps the model in another module ("body.stem.weight") or joins the first two parts
    of a name with an underscore ("stages_0.blocks.0.gamma").

    Args:
        name: of the parameter in the extractor.
        known: the names of the full model's parameters.
    """
    head, dot, rest = name.partition(".")
    joined = (f"{head[:i]}.{head[i + 1 :]}{dot}{rest}" for i, c in enumerate(head) if c == "_")
    return next((n for n in (name, rest, *joined) if n in known), None)


def layers(whole: nn.Module, parameters: Iterable[str], coarse: bool) -> dict[str, int] | None:
    """The layer number of each parameter of an extractor, by timm's ``group_matcher``.

    Args:
        whole: the full model that the extractor comes from.
        parameters: their names in the extractor.
        coarse: whether to count stages after the stem, or blocks of a plain transformer, instead of
            timm's finest layers.

    Returns:
        Numbers by name, without the parameters that the full model lacks; None if the model has no
        ``group_matcher``.
    """
    matcher: Any = getattr(whole, "group_matcher", None)
    if not callable(matcher):
        return None
    of_whole = group_parameters(whole, matcher(coarse=coarse), reverse=True)
    original = {name: original_name(name, set(of_whole)) for name in parameters}
    return {name: of_whole[o] for name, o in original.items() if o is not None}


def first_stages(name: str, parameters: Sequence[str], count: int) -> set[str]:
    """The parameters of an extractor that belong to the model's first ``count`` stages.

    Args:
        name: of the timm model.
        parameters: their names in the extractor.
        count: the number of stages; the stem is the first.

    Raises:
        InputError: timm does not know the stages of this model, or the model has no more than
            ``count``.
    """
    with torch.device("meta"):
        whole = timm.create_model(name)
    stages = layers(whole, parameters, coarse=True)
    if stages is None:
        raise InputError(
            f"frozen_stages: timm does not define the stages of {name!r}: leave it out, or freeze "
            f"the whole backbone with freeze_backbone"
        )
    last = max(stages.values())
    if count > last:
        raise InputError(
            f"frozen_stages={count}: {name} has {last + 1} with the stem: give at most {last}, or "
            f"freeze the whole backbone with freeze_backbone"
        )
    return {parameter for parameter, stage in stages.items() if stage < count}


def features(name: str, fine: bool = False) -> Features:
    """The feature maps of a timm model.

    Args:
        name: a timm model name.
        fine: whether to include the map at stride 4, if the model has it.

    Raises:
        InputError: timm has no such model, or it cannot be a backbone. The message suggests others.
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
    """Up to ``most`` working models with similar names, then models that suit most uses."""
    stem = name.split(".")[0]
    working: list[str] = []
    failed = {_family(name)} if timm.is_model(name) else set()
    for other in difflib.get_close_matches(stem, timm.list_models(), n=12, cutoff=0.5):
        if len(working) == most:
            break
        # Models of one family fail alike, and each try takes seconds.
        if _family(other) in failed:
            continue
        try:
            _features(other, fine=False)
            working.append(other)
        except _UnusableError:
            failed.add(_family(other))
    return list(dict.fromkeys([*working, *_GOOD]))[:4]


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
    # The last of several maps with the same stride is the deepest.
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
    """Options that give a model patches of ``_PATCH`` pixels.

    timm resamples the weights of the patch embedding. The image size is chosen so that the number
    of patches, and with it the position embedding, stays the same.
    """
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
        attempts = None
        for multiple in (STRIDES[-1], *twin.pretrained_cfg["input_size"][1:2]):
            short = math.ceil(_SIDE / multiple) * multiple
            long = short + multiple
            try:
                attempts = [_maps(twin, size, strides) for size in ((short, long), (long, short))]
                break
            except _FAILURES as error:
                reason = reason or error
        if attempts is None or multiple % STRIDES[-1]:
            raise _UnusableError(f"does not take images of any size ({_first_line(reason)})")
        maps, channels_last = attempts[0]
        channels = tuple(twin.feature_info.channels())
    used = _leaves(maps)
    unused = frozenset(n for n, parameter in twin.named_parameters() if parameter not in used)
    return Features(options, strides, channels, plain, multiple, channels_last, unused)


def _maps(
    twin: nn.Module, size: tuple[int, int], strides: Sequence[int]
) -> tuple[list[Tensor], bool]:
    """The maps of two images of a size, and whether their channels come last. Raises ValueError if
    their sizes do not fit their strides."""
    maps = twin(torch.empty(2, 3, *size))
    grids = [tuple(side // stride for side in size) for stride in strides]
    if [tuple(m.shape[2:]) for m in maps] == grids:
        return maps, False
    if [tuple(m.shape[1:3]) for m in maps] == grids:
        return maps, True
    shapes = ", ".join("x".join(map(str, m.shape[1:])) for m in maps)
    raise ValueError(f"an image of {size[0]} x {size[1]} becomes {shapes}")


def _leaves(outputs: Iterable[Tensor]) -> set[Tensor]:
    """The parameters that the outputs depend on, from the autograd graph, as in DDP. A backward
    pass on the meta device would double the time of the whole try."""
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
