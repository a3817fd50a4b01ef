"""How a model saves its settings, categories and preprocessing in checkpoints and loads them.

Hyper-parameters are saved as plain values, so that torch.load can read any checkpoint with
``weights_only``.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from autotimm.files import urls
from autotimm.structures import InputError, Preprocessing
from autotimm.tasks import optimization, structure
from autotimm.tasks.checkpoint import (
    EMA,
    categories_of,
    check_resumable,
    model_of,
    preprocessing_of,
    read_checkpoint,
    weights_of,
)
from autotimm.tasks.data_checks import matched_categories
from autotimm.tasks.settings import DetectorSettings, from_hparams


class Checkpointed(LightningModule):
    """A model whose checkpoints contain its settings, categories and preprocessing."""

    categories: list[dict[str, Any]] | None
    """The categories of the training dataset: label i is ``categories[i]``."""
    preprocessing: Preprocessing
    """The preprocessing that the weights were trained with. Data modules use it too."""

    @property
    def settings(self) -> DetectorSettings:
        """The current hyper-parameters."""
        return from_hparams(DetectorSettings, self.hparams)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["categories"] = self.categories
        checkpoint["preprocessing"] = asdict(self.preprocessing)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._state("training"):
            check_resumable(checkpoint)
            theirs = checkpoint.get("hyper_parameters")
            self._check_structure(theirs)
            optimization.check_resumable(self.settings, theirs)
            self._warn_of_losses(theirs)
        elif EMA in checkpoint:
            checkpoint["state_dict"] = weights_of(checkpoint)
        saved = categories_of(checkpoint)
        # Those of the data, if the model has seen data: their ids may be others.
        predicts = self._state("predicting")
        self.categories = matched_categories(saved, self.categories, any_order=predicts)
        self.preprocessing = preprocessing_of(checkpoint)

    def _check_structure(self, theirs: Any) -> None:
        """Raise InputError, which names them, if settings of the network are not the training's."""
        names = (*structure.STRUCTURE, "num_classes")
        wrong = structure.different(self.hparams, theirs, names) if isinstance(theirs, dict) else {}
        if wrong:
            given = {key: value for key, value in wrong.items() if key != "num_classes"}
            ways = [f"give the model those of the checkpoint ({structure.flags(given)})"] * bool(
                given
            )
            if "num_classes" in wrong:
                ways.append("train on the data of the checkpoint, which decide the classes")
            raise InputError(
                f"the checkpoint to resume from has {structure.shown(wrong)}, but the model has "
                f"{structure.shown({key: self.hparams[key] for key in wrong})}: "
                f"{' and '.join(ways)}, or begin anew from its weights (--weights)"
            )

    def _warn_of_losses(self, theirs: Any) -> None:
        """Warn if a run resumes with other losses than those of its checkpoint."""
        if not isinstance(theirs, dict):
            return
        for name, kept in structure.different(self.hparams, theirs, structure.LOSSES).items():
            rank_zero_warn(
                f"from here the model learns by {name}={self.hparams[name]}, but the checkpoint to "
                f"resume from was trained with {kept}"
            )

    def _state(self, name: str) -> bool:
        """Whether the trainer is in this state, such as ``training``."""
        try:
            return bool(getattr(self.trainer, name))
        except RuntimeError:  # Lightning raises it if the model has no trainer
            return False

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As in torch, but raises an InputError of one line if the weights do not fit."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        # torch raises the last two for values that are not tensors and keys that are not strings.
        except (RuntimeError, AttributeError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"the checkpoint's weights do not fit this {type(self).__name__} (num_classes, "
                f"{', '.join(structure.STRUCTURE[:-1])} and {structure.STRUCTURE[-1]} must be "
                f"those of the training): {reason[:200]}..."
            ) from error

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: str | torch.device | None = None,
        strict: bool = True,
        **overrides: Any,
    ) -> Self:
        """Load a model from a checkpoint on disk or at a URL.

        Only weights and plain values are read. If the training averaged the weights
        (``ema_decay``), the model gets the average. Compilation takes minutes, so the model is not
        compiled unless ``compile_model=True`` is given.

        Args:
            checkpoint_path: a path, or a URL that fsspec opens.
            map_location: the device of the model, or its name; the CPU if None.
            strict: whether the checkpoint must hold every weight.
            **overrides: constructor arguments that replace those in the checkpoint.

        Raises:
            InputError: the file does not exist, is not a checkpoint of this class, or is unsafe.
        """
        checkpoint = read_checkpoint(checkpoint_path)
        name = urls.shown(str(checkpoint_path))
        return model_of(cls, checkpoint, name, map_location, strict, overrides)
