"""What a detector's checkpoint holds beside its weights, and what may be done with one.

Hyper-parameters are kept as plain values, so that a checkpoint loads with weights only, wherever
it comes from.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from lightning import LightningModule

from autotimm.files import urls
from autotimm.structures import InputError, Preprocessing
from autotimm.tasks import optimization
from autotimm.tasks.checkpoint import (
    EMA,
    categories_of,
    check_goes_on,
    model_of,
    preprocessing_of,
    read_checkpoint,
    weights_of,
)
from autotimm.tasks.data_checks import check_categories
from autotimm.tasks.settings import DetectorSettings, from_hparams


class Checkpointed(LightningModule):
    """A model whose checkpoints know its settings, its categories and its preprocessing."""

    categories: list[dict[str, Any]] | None
    """Of the data set that the model was trained on: label i is ``categories[i]``."""
    preprocessing: Preprocessing
    """Of images: what the weights were trained with. A data module asks for it."""

    @property
    def settings(self) -> DetectorSettings:
        """The hyper-parameters as they are now."""
        return from_hparams(DetectorSettings, self.hparams)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["categories"] = self.categories
        checkpoint["preprocessing"] = asdict(self.preprocessing)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._is_in_training():
            check_goes_on(checkpoint)
            optimization.check_goes_on(self.settings, checkpoint.get("hyper_parameters"))
        elif EMA in checkpoint:
            checkpoint["state_dict"] = weights_of(checkpoint)
        saved = categories_of(checkpoint)
        check_categories(self.categories, saved)
        self.categories = saved or self.categories
        self.preprocessing = preprocessing_of(checkpoint)

    def _is_in_training(self) -> bool:
        try:
            return self.trainer.training
        except RuntimeError:  # Lightning's, if no trainer has this model
            return False

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As in torch, but weights that do not fit are an InputError of one line."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        # What is no weight, or has no name, torch trips over.
        except (RuntimeError, AttributeError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"the checkpoint's weights do not fit this {type(self).__name__} (num_classes, "
                f"backbone, fpn_channels and mask_size must be those of the training): "
                f"{reason[:200]}..."
            ) from error

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: str | torch.device | None = None,
        strict: bool = True,
        **overrides: Any,
    ) -> Self:
        """The model of a checkpoint on disk or at a URL. Only weights and plain values are read.

        Where the training kept an average of the weights (``ema_decay``), that is the model.

        It comes uncompiled, as a few predictions would not pay for minutes of compilation:
        ``compile_model=True`` asks for it.

        Args:
            checkpoint_path: a path, or a URL that fsspec opens.
            map_location: where the model goes: a device, or its name; the CPU if None.
            strict: whether every weight must be there.
            **overrides: constructor arguments that replace those in the checkpoint.

        Raises:
            InputError: no such file, or not a checkpoint of this class that can be read safely.
        """
        checkpoint = read_checkpoint(checkpoint_path)
        name = urls.shown(str(checkpoint_path))
        return model_of(cls, checkpoint, name, map_location, strict, overrides)
