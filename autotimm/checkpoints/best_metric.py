"""The validation metric by which a checkpoint is the best one."""

from __future__ import annotations

from collections.abc import Collection

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from autotimm.checkpoints.settings import SaveSettings
from autotimm.structures import InputError


def chosen(
    settings: SaveSettings, trainer: Trainer, model: LightningModule
) -> tuple[str | None, str]:
    """Returns the name of a fit's metric, None if there is none, and "max" or "min".

    Raises:
        InputError: a metric is given, but the fit does not validate.
    """
    given = settings.best_metric
    if given and trainer.limit_val_batches == 0:
        raise InputError("best_metric has no effect with limit_val_batches=0")
    of_model = _metrics(model)
    if given and given.startswith("val/") and of_model and not given.startswith(tuple(of_model)):
        # Only a warning, because a user's subclass may log more metrics. Otherwise the first
        # validation raises an error.
        rank_zero_warn(
            f"best_metric={given!r} is none of the model's metrics, {', '.join(of_model)}"
        )
    name = given or (of_model[0] if of_model and settings.keep_best else None)
    small_is_good = "loss" in (name or "").lower()
    return name, settings.best_mode or ("min" if small_is_good else "max")


def missing(name: str | None, logged: Collection[str]) -> str | None:
    """The message for a validation that has not logged the metric; None if it has.

    Args:
        name: of the metric, from :func:`chosen`.
        logged: the names of what the validation has logged.
    """
    if name is None or name in logged:
        return None
    there = ", ".join(sorted(logged)) or "nothing"
    return f"best_metric={name!r} is not logged in validation, only {there}"


def _metrics(model: LightningModule) -> list[str]:
    """The names of the validation metrics that a model logs, those on the progress bar first."""
    configs = model.hparams.get("metrics") or []
    measured = [c for c in configs if isinstance(c, dict) and "val" in c.get("stages", ())]
    return [f"val/{c['name']}" for c in sorted(measured, key=lambda c: not c.get("prog_bar"))]
