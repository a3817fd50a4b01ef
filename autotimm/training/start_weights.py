"""``--weights``: the trained model that a new run starts from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from autotimm.checkpoints.sources import read_source
from autotimm.files import urls
from autotimm.structures import InputError
from autotimm.tasks import transfer
from autotimm.tasks.detector import ObjectDetector
from autotimm.training.earlier_runs import LAST
from autotimm.training.newest_link import resolve_link


class Weights(NamedTuple):
    """A trained model that a new run starts from; ``tasks/transfer.py`` says what it takes."""

    source: str
    only_fitting: bool

    @classmethod
    def given(cls, source: str | Path | None, only_fitting: bool, ckpt_path: Any) -> Weights | None:
        """The weights by the arguments of a fit; None if none are given.

        Raises:
            InputError: the arguments contradict each other.
        """
        if source is None:
            if only_fitting:
                raise InputError(
                    "--weights-only-fitting has no effect without --weights: give both, or none"
                )
            return None
        if not str(source):
            raise InputError("--weights is empty: give a checkpoint, or leave it out")
        if ckpt_path not in (None, LAST):
            raise InputError(
                "--ckpt_path resumes a run and --weights starts a new one: give one of them"
            )
        if not urls.kind(str(source)):
            source = resolve_link(source)
        return cls(str(source), only_fitting)

    def take(self, trainer: Trainer, model: Any) -> None:
        """Copy the weights into ``model``, and print what was taken.

        Raises:
            InputError: the source cannot be read, or is of another kind of model.
        """
        if not isinstance(model, ObjectDetector):
            raise InputError(
                f"--weights starts an ObjectDetector or InstanceSegmentor, not a "
                f"{type(model).__name__}"
            )
        datamodule: Any = getattr(trainer, "datamodule", None)
        categories = getattr(datamodule, "categories", None)
        names: list[str] | None = None  # of the data; else those the model has been trained on
        if categories is not None:
            names = [one.name for one in categories]
        elif model.categories:
            names = [one["name"] for one in model.categories]
        name = urls.shown(self.source)
        rank_zero_info(
            transfer.take(model, read_source(self.source), name, names, self.only_fitting)
        )


def preparation(
    trainer: Trainer, weights: Weights | None, model: LightningModule, checkpoint: Any
) -> Callable[[], None] | None:
    """What gives ``model`` the weights that a run starts from; None if the run needs none.

    Args:
        trainer: of the run.
        weights: that the user gives for a fit.
        model: of the run.
        checkpoint: that the run begins from, with the weights of all of the model.
    """
    if weights is None or trainer.state.fn != TrainerFn.FITTING:
        return None
    if checkpoint:
        rank_zero_info("the checkpoint has all weights: --weights is not read again")
        return None
    return partial(weights.take, trainer, model)
