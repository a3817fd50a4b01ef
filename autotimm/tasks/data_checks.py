"""Checks whether a model fits the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from autotimm.files import urls
from autotimm.models.backbone import Backbone
from autotimm.structures import InputError


def categories_of_data(datamodule: Any, num_classes: int) -> list[dict[str, Any]]:
    """The categories of a data module, by label, in the form that a model saves.

    Args:
        datamodule: has ``categories`` and ``num_classes``.
        num_classes: of the model.

    Raises:
        InputError: the data have a different number of categories.
    """
    if datamodule.num_classes != num_classes:
        raise InputError(
            f"num_classes={num_classes} of the model, but {urls.shown(str(datamodule.data_dir))} "
            f"has {datamodule.num_classes} categories: give the model num_classes="
            f"{datamodule.num_classes}, or other data"
        )
    return [
        {"id": c.id, "name": c.name} | ({} if c.given_id is None else {"given_id": c.given_id})
        for c in datamodule.categories
    ]


def check_categories(
    mine: Sequence[dict[str, Any]] | None, others: Sequence[dict[str, Any]] | None
) -> None:
    """Raise InputError if a label has different categories on both sides; None is not checked."""
    for one, other in zip(mine or (), others or (), strict=False):
        if one != other:
            raise InputError(
                f"the model and the data do not have the same classes: {one} and {other}; "
                f"give the data that the model was trained on, or a model for this data"
            )


def warn_of_backbone(backbone: Backbone, canvas: tuple[int, int] | None) -> None:
    """Warn if frozen norms have random weights, or if padding for windows enlarges the canvas.

    Args:
        backbone: of the model.
        canvas: height and width of the data's images, if known.
    """
    if backbone.norm == "frozen" and backbone.norms_are_fresh():
        rank_zero_warn(
            "backbone_norm='frozen' keeps norms that have seen no image yet: give "
            "pretrained=True or a weights file"
        )
    if canvas is not None and canvas != (full := backbone.padded(*canvas)):
        rank_zero_warn(
            f"the backbone's windows need images of a multiple of {backbone.multiple} pixels, "
            f"so image_size {canvas[0]} x {canvas[1]} costs as much as {full[0]} x "
            f"{full[1]}: take another image_size, or a backbone such as convnext_tiny"
        )
