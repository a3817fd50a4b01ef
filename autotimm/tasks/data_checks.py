"""Checks whether a model fits the data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from autotimm.files import urls
from autotimm.models.backbone import Backbone
from autotimm.structures import InputError


def categories_of_data(
    datamodule: Any, num_classes: int, trained: Sequence[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """The categories of a data module, by label, in the form that a model saves.

    Args:
        datamodule: has ``categories`` and ``num_classes``.
        num_classes: of the model.
        trained: the categories that the model was trained on, whose number cannot be changed.

    Raises:
        InputError: the data have a different number of categories.
    """
    if datamodule.num_classes != num_classes:
        where = urls.shown(str(datamodule.data_dir))
        if trained:
            raise InputError(
                f"the model was trained on {_listed(trained)}, but {where} has "
                f"{datamodule.num_classes} categories: give data of the model's classes, or train "
                f"on these with fit --weights CHECKPOINT"
            )
        raise InputError(
            f"num_classes={num_classes} of the model, but {where} has {datamodule.num_classes} "
            f"categories: give the model num_classes={datamodule.num_classes}, or other data"
        )
    return [
        {"id": c.id, "name": c.name} | ({} if c.given_id is None else {"given_id": c.given_id})
        for c in datamodule.categories
    ]


def _listed(categories: Sequence[dict[str, Any]], most: int = 5) -> str:
    """The number of categories and the first names, such as ``2 categories (apple, pear)``."""
    names = [str(one["name"]) for one in categories]
    more = ", ..." if len(names) > most else ""
    return f"{len(names)} categories ({', '.join(names[:most])}{more})"


def matched_categories(
    model: Sequence[dict[str, Any]] | None,
    data: Sequence[dict[str, Any]] | None,
    *,
    any_order: bool = False,
) -> list[dict[str, Any]] | None:
    """The categories of the data by the model's labels: the same classes, under the data's own ids.

    Classes are the same if their names are. Ids count only where several classes share a name.

    Args:
        model: the model's categories, by label; None if it has none yet.
        data: the same of the data.
        any_order: whether the data may have the classes in another order. Labels of the data then
            mean other classes than those of the model: only where nobody compares them.

    Raises:
        InputError: the classes differ, or their order does without ``any_order``.
    """
    if model is None or data is None:
        return list(data or model or ()) or None
    names, others = ([one["name"] for one in side] for side in (model, data))
    if len({*names}) == len(names) == len({*others}):
        if names == others:
            return list(data)
        if {*names} == {*others}:
            if any_order:
                by_name = {one["name"]: one for one in data}
                return [by_name[name] for name in names]
            raise InputError(
                "the model and the data have the same classes in another order "
                f"({', '.join(names[:3])} and {', '.join(others[:3])}), so that their labels mean "
                "other classes: give the data's categories ids in the model's order"
            )
    for one, other in zip_longest(model, data):
        if one is None or other is None or _identity(one) != _identity(other):
            raise InputError(
                f"the model and the data do not have the same classes: {one} and {other}; "
                f"give the data that the model was trained on, or a model for this data"
            )
    return list(data)


def _identity(category: dict[str, Any]) -> tuple[Any, Any]:
    return category.get("given_id", category["id"]), category["name"]


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
