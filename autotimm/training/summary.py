"""The size of the model in one line."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_summary import get_human_readable_count


class Summary(ModelSummary):
    """Lightning's summary as one line, without its table of modules and FLOPs."""

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
