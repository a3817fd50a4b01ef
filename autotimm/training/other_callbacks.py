"""Callbacks that cannot work in a fit, refused before the first step.

Without this check they fail after hours, or have no effect: some of Lightning's, and those that
monitor a value that nothing logs. Those of Lightning's that are not listed here work, which
``tests/training/test_other_callbacks.py`` holds for every one that it exports.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
)

from autotimm.checkpoints.callback import Checkpoints
from autotimm.structures import InputError
from autotimm.tasks.detector import ObjectDetector
from autotimm.training.throughput import LOGGED

_REFUSED: dict[type, str] = {
    StochasticWeightAveraging: (
        "trains an epoch without gradients to measure batch norms, and replaces the weights after "
        "the last checkpoint: give the trainer ema_decay=0.9998, an average that is evaluated, "
        "saved and resumed"
    ),
    LearningRateFinder: (
        "changes the rate after the run has been set up: call trainer.find_lr (autotimm find_lr) "
        "before the fit, and give the model its result as lr"
    ),
    ModelPruning: (
        "replaces weights that the network reads outside of their layers: prune the trained model, "
        "with torch.nn.utils.prune after autotimm.load"
    ),
    SpikeDetection: (
        "cannot be resumed, so a run that is stopped would be lost: leave it out (a loss that is "
        "not finite ends the run anyway), and give gradient_clip_val against spikes"
    ),
}


def check_callbacks(callbacks: Sequence[Callback], model: LightningModule) -> None:
    """Raise InputError if a callback of the trainer's or the model's cannot work in a fit.

    Args:
        callbacks: of the trainer.
        model: that is trained; it may bring callbacks of its own.
    """
    own = model.configure_callbacks()
    every = [*callbacks, *(own if isinstance(own, Sequence) else [own])]
    for callback in every:
        for kind, reason in _REFUSED.items():
            if isinstance(callback, kind):
                raise InputError(f"the callback {kind.__name__} {reason}")
        if isinstance(callback, BackboneFinetuning) and not hasattr(model, "backbone"):
            raise InputError(
                f"the callback BackboneFinetuning looks for model.backbone, which "
                f"{type(model).__name__} does not have: leave it out, and give the model "
                "backbone_lr_factor or freeze_backbone"
            )
    if isinstance(model, ObjectDetector) and _logs_nothing_else(every, model):
        _check_monitors(every, model)


def _logs_nothing_else(callbacks: Sequence[Callback], model: LightningModule) -> bool:
    """Whether no code of the user's can log: that of a subclass, or of a callback."""
    kinds = [type(model), *map(type, callbacks)]
    return LambdaCallback not in kinds and all(
        kind.__module__.startswith(("autotimm.", "lightning.")) for kind in kinds
    )


def _check_monitors(callbacks: Sequence[Callback], model: ObjectDetector) -> None:
    logged = model.logged() | LOGGED
    rates = any(isinstance(callback, LearningRateMonitor) for callback in callbacks)
    for where, name in _monitored(callbacks):
        of_class = "_class_" in name and name.startswith(tuple(logged))
        if name in logged or of_class or (rates and name.startswith("lr-")):
            continue
        near = difflib.get_close_matches(name, sorted(logged), 3)
        validated = sorted(one for one in logged if one.startswith("val/"))
        if near:
            hint = f"did you mean {' or '.join(near)}?"
        elif validated:
            hint = f"it logs {', '.join(validated)} and train/loss"
        else:
            hint = "it has no metrics, so validation logs nothing: give the model metrics"
        raise InputError(f"{where}={name!r} is not logged by {type(model).__name__}: {hint}")


def _monitored(callbacks: Sequence[Callback]) -> Iterator[tuple[str, str]]:
    """The names of monitored values, and where each was given."""
    for callback in callbacks:
        if isinstance(callback, Checkpoints) and callback.settings.best_metric:
            yield "best_metric", callback.settings.best_metric
        elif isinstance(callback, EarlyStopping) and callback.strict:
            yield "the callback EarlyStopping's monitor", callback.monitor
        elif isinstance(callback, ModelCheckpoint) and callback.monitor:
            yield f"the callback {type(callback).__name__}'s monitor", callback.monitor
