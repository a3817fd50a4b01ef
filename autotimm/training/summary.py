"""The sizes of the model and of the data, a line each."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_summary import get_human_readable_count

from autotimm.data.settings import DataSettings
from autotimm.files.units import counted


class Summary(ModelSummary):
    """Lightning's summary as one line, without its table of modules and FLOPs; and the data's."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if line := data_line(trainer):
            rank_zero_info(line)

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],  # noqa: ARG004  the two parts
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        *_: Any,
        **__: Any,
    ) -> None:
        total, trained = map(get_human_readable_count, (total_parameters, trainable_parameters))
        rank_zero_info(
            f"model: {total.strip()} parameters, {trained.strip()} of them trained, "
            f"{model_size:.1f} MB"
        )


def data_line(trainer: Trainer) -> str:
    """How many images and steps an epoch has, and how many images a validation.

    Empty if the images are not counted: in a data module that is not ours.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    settings = getattr(datamodule, "settings", None)
    if not isinstance(settings, DataSettings):
        return ""

    def images(split: str) -> int:
        return int(datamodule.source(split).shard_sizes.sum())

    parts = [counted(images(settings.train_split), "training image")]
    if math.isfinite(batches := trainer.num_training_batches):
        parts.append(
            f"{counted(math.ceil(batches / trainer.accumulate_grad_batches), 'step')} an epoch"
        )
    if settings.val_split is not None and trainer.enable_validation:
        parts.append(counted(images(settings.val_split), "validation image"))
    return ", ".join(parts)
