"""Parameter groups: the learning rate and the weight decay of each parameter.

Invariants: every parameter that requires a gradient is in exactly one group; if both factors are 1,
there are two groups, the decayed parameters first.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

import timm
import torch
from torch import nn

from autotimm.models.features import layers, original_name
from autotimm.models.network import Network
from autotimm.structures import InputError

_TIMM = "backbone.model."
"""The prefix of the parameters of timm's model. All others start from random weights."""


def groups(
    network: Network,
    backbone: str,
    *,
    lr: float,
    weight_decay: float,
    backbone_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Build the parameter groups of an optimizer.

    Weight decay does not apply to biases, to parameters with at most one dimension (norms and
    scales), and to those in timm's ``no_weight_decay``: position embeddings, class tokens and
    relative position tables.

    Args:
        network: the groups contain its parameters that require a gradient.
        backbone: timm's name of its backbone.
        lr: peak learning rate of the pyramid and the heads.
        weight_decay: of the decayed parameters.
        backbone_lr_factor: multiplies ``lr`` for the backbone.
        layer_decay: multiplies ``lr`` once more for each layer of the backbone, counted from the
            last (Clark et al. 2020; BEiT, ViTDet), by timm's ``group_matcher``.

    Raises:
        InputError: layer_decay is not 1 and timm does not define the layers of this backbone.
    """
    names = [n.removeprefix(_TIMM) for n, _ in network.named_parameters() if n.startswith(_TIMM)]
    with torch.device("meta"):
        whole = timm.create_model(backbone)
    known = {name for name, _ in whole.named_parameters()}
    original = {name: original_name(name, known) for name in names}
    undecayed = _undecayed(whole)
    factors = dict.fromkeys(names, backbone_lr_factor)
    if layer_decay != 1:
        for name, above in _layers_above(whole, names, backbone).items():
            factors[name] *= layer_decay**above
    parts: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        in_timm = name.removeprefix(_TIMM) if name.startswith(_TIMM) else None
        plain = parameter.ndim <= 1 or name.endswith(".bias")
        decays = not plain and not (in_timm and _matches(original[in_timm], undecayed))
        factor = factors[in_timm] if in_timm else 1.0
        parts.setdefault((factor, decays), []).append(parameter)
    return [
        {
            "params": parts[factor, decays],
            "lr": lr * factor,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for factor, decays in sorted(parts, reverse=True)
    ]


def _undecayed(whole: nn.Module) -> set[str]:
    """The names, or patterns of names, of parameters that timm does not decay."""
    ask: Any = getattr(whole, "no_weight_decay", None)
    return set(ask()) if callable(ask) else set()


def _matches(name: str | None, patterns: Iterable[str]) -> bool:
    return name is not None and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _layers_above(whole: nn.Module, names: Iterable[str], backbone: str) -> dict[str, int]:
    """The depth of each parameter's layer, counted from the last one, which has 1.

    Layers that the extractor leaves out do not count.

    Args:
        whole: the full timm model.
        names: of the extractor's parameters.
        backbone: timm's name of the model.
    """
    numbers = layers(whole, names, coarse=False)
    if numbers is None:
        raise InputError(
            f"layer_decay: timm does not define the layers of {backbone!r}: leave it out, or take "
            f"backbone_lr_factor"
        )
    order = {number: i for i, number in enumerate(sorted(set(numbers.values())))}
    return {name: len(order) - order[number] for name, number in numbers.items()}
