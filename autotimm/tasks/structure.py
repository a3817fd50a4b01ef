"""Settings that decide the shapes of a network's layers or its losses, and how models differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STRUCTURE = ("backbone", "fpn_channels", "head_convs", "mask_size", "layout")
"""All but the number of classes, which decides the rows of a few layers alone."""
LOSSES = ("box_quality", "mask_loss")
"""The settings that decide what the network learns by."""
# Values in the versions whose checkpoints lack these settings, whatever the defaults are now.
_BEFORE = {"layout": "autotimm", "box_quality": "centerness", "mask_loss": "bce"}


def different(
    own: Mapping[str, Any], theirs: Mapping[str, Any], names: tuple[str, ...] = STRUCTURE
) -> dict[str, Any]:
    """The settings in which another model differs from this one, with the other's values.

    A setting that only one of the two has, such as ``mask_size`` of a segmentor, is no difference.

    Args:
        own: the hyper-parameters of this model.
        theirs: those of the other, as a checkpoint has them.
        names: of the settings to compare.
    """
    there = {key: theirs.get(key, _BEFORE.get(key)) for key in names if key in own}
    return {
        key: value
        for key, value in there.items()
        if value is not None and _kind(key, value) != _kind(key, own[key])
    }


def flags(values: Mapping[str, Any]) -> str:
    """Settings as flags of the command line."""
    return " ".join(f"--model.init_args.{key} {value}" for key, value in values.items())


def shown(values: Mapping[str, Any]) -> str:
    """Settings for a message."""
    return " and ".join(f"{key}={value}" for key, value in values.items())


def _kind(key: str, value: Any) -> Any:
    """A setting as it decides shapes: of timm's names, the tag after the dot does not."""
    return str(value).partition(".")[0] if key == "backbone" else value
