"""Lightning's callbacks that do not work with this package, refused before the first step.

Without this check they fail after hours, or have no effect. Those that are not listed here work,
which ``tests/training/test_other_callbacks.py`` holds for every one that Lightning exports.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    LearningRateFinder,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
)

from autotimm.structures import InputError

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
    for callback in (*callbacks, *(own if isinstance(own, Sequence) else [own])):
        for kind, reason in _REFUSED.items():
            if isinstance(callback, kind):
                raise InputError(f"the callback {kind.__name__} {reason}")
        if isinstance(callback, BackboneFinetuning) and not hasattr(model, "backbone"):
            raise InputError(
                f"the callback BackboneFinetuning looks for model.backbone, which "
                f"{type(model).__name__} does not have: leave it out, and give the model "
                "backbone_lr_factor or freeze_backbone"
            )
