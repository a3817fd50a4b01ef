"""How each parameter is trained: whether it decays, and what its learning rate is multiplied by.

Invariants: every parameter that takes a gradient is in exactly one group; with both factors at 1
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
"""Before the names of what timm has made; other parameters start from random weights."""


def groups(
    network: Network,
    backbone: str,
    *,
    lr: float,
    weight_decay: float,
    backbone_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer.

    Not decayed are biases, what has one dimension or none (norms and scales), and what timm's
    ``no_weight_decay`` names: position embeddings, class tokens, tables of relative positions.

    Args:
        network: whose parameters that take a gradient are trained.
        backbone: timm's name of its backbone.
        lr: peak learning rate of the pyramid and the heads.
        weight_decay: of what decays.
        backbone_lr_factor: what ``lr`` is multiplied by for the backbone.
        layer_decay: what it is multiplied by once more for each layer of the backbone, counted from
            the last (Clark et al. 2020; BEiT, ViTDet), by timm's ``group_matcher``.

    Raises:
        InputError: layer_decay is not 1 and timm does not tell the layers of this backbone.
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
    """Names, or patterns of names, that timm's own training does not decay."""
    ask: Any = getattr(whole, "no_weight_decay", None)
    return set(ask()) if callable(ask) else set()


def _matches(name: str | None, patterns: Iterable[str]) -> bool:
    return name is not None and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _layers_above(whole: nn.Module, names: Iterable[str], backbone: str) -> dict[str, int]:
    """For each parameter of the extractor that ``whole`` has: 1 in its last layer, 2 in the one
    before. Layers that the extractor leaves out do not count."""
    numbers = layers(whole, names, coarse=False)
    if numbers is None:
        raise InputError(
            f"layer_decay: timm does not tell the layers of {backbone!r}: leave it out, or take "
            f"backbone_lr_factor"
        )
    order = {number: i for i, number in enumerate(sorted(set(numbers.values())))}
    return {name: len(order) - order[number] for name, number in numbers.items()}
