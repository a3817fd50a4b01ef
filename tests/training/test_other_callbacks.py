"""Each of Lightning's callbacks works in a run, saves and resumes, or is refused before a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import small
from conftest import SAMPLE
from lightning.pytorch import Callback, callbacks
from line import Line, loader, quiet

from autotimm import (
    AutoTrainer,
    InputError,
    InstanceSegmentationDataModule,
    InstanceSegmentor,
)
from autotimm.training.other_callbacks import check_callbacks

pytestmark = pytest.mark.filterwarnings("ignore")


class Measured(Line):
    def __init__(self, extra: list[Callback] | None = None) -> None:
        super().__init__()
        self.backbone = torch.nn.Linear(1, 1)
        self.extra = extra or []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx) + self.backbone(torch.ones(1)).sum() ** 2
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.weight.detach() ** 2)
        return [{}, {}]

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)

    def configure_callbacks(self):
        return self.extra


WORK: dict[str, Callable[[Path], Any]] = {
    "BackboneFinetuning": lambda _: callbacks.BackboneFinetuning(1),
    "DeviceStatsMonitor": lambda _: callbacks.DeviceStatsMonitor(),
    "EMAWeightAveraging": lambda _: callbacks.EMAWeightAveraging(),
    "EarlyStopping": lambda _: callbacks.EarlyStopping("val/loss"),
    "GradientAccumulationScheduler": lambda _: callbacks.GradientAccumulationScheduler({0: 2}),
    "LambdaCallback": lambda _: callbacks.LambdaCallback(on_train_start=lambda *_: None),
    "LearningRateMonitor": lambda _: callbacks.LearningRateMonitor(),
    "ModelCheckpoint": lambda folder: callbacks.ModelCheckpoint(folder, monitor="train/loss"),
    "ModelSummary": lambda _: callbacks.ModelSummary(),
    "OnExceptionCheckpoint": lambda folder: callbacks.OnExceptionCheckpoint(folder),
    "RichModelSummary": lambda _: callbacks.RichModelSummary(),
    "RichProgressBar": lambda _: callbacks.RichProgressBar(),
    "TQDMProgressBar": lambda _: callbacks.TQDMProgressBar(),
    "ThroughputMonitor": lambda _: callbacks.ThroughputMonitor(lambda batch: len(batch["image"])),
    "Timer": lambda _: callbacks.Timer("00:01:00:00"),
    "WeightAveraging": lambda _: callbacks.WeightAveraging(),
}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "LearningRateFinder": (lambda: callbacks.LearningRateFinder(), "find_lr"),
    "ModelPruning": (lambda: callbacks.ModelPruning("l1_unstructured"), "torch.nn.utils.prune"),
    "SpikeDetection": (lambda: callbacks.SpikeDetection(), "gradient_clip_val"),
    "StochasticWeightAveraging": (
        lambda: callbacks.StochasticWeightAveraging(0.01),
        "ema_decay=0.9998",
    ),
}
# Base classes do nothing by themselves; the finder of batch sizes needs a data module.
OTHERS = {
    *("BaseFinetuning", "BasePredictionWriter", "Callback", "Checkpoint", "ProgressBar"),
    "BatchSizeFinder",
}

QUICK = ["LearningRateMonitor", "RichProgressBar"]


def trainer_with(callback: Callback, folder: Path, **options: Any) -> AutoTrainer:
    return AutoTrainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[callback],
        logger="csv",
        log_every_n_steps=1,
        limit_train_batches=2,
        enable_progress_bar=isinstance(callback, callbacks.ProgressBar),
        enable_model_summary=isinstance(callback, callbacks.ModelSummary),
        **options,
    )


def test_every_callback_of_lightnings_is_known() -> None:
    assert set(callbacks.__all__) == {*WORK, *REFUSED, *OTHERS}


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WORK],
)
def test_a_callback_works_and_its_run_resumes(name: str, tmp_path: Path) -> None:
    def trainer(epochs: int) -> Any:
        return trainer_with(WORK[name](tmp_path), tmp_path, max_epochs=epochs)

    first = trainer(2)
    first.fit(Measured(), loader(), loader(1))
    steps = first.global_step
    assert steps == (2 if name == "GradientAccumulationScheduler" else 4)
    assert (tmp_path / "version_0/checkpoints" / f"step_{steps}.ckpt").exists()
    again = trainer(3)
    again.fit(Measured(), loader(), loader(1), ckpt_path="last")
    assert again.global_step == steps * 3 // 2


@pytest.mark.parametrize("of_model", [False, True], ids=["trainer's", "model's"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_callback_is_refused_before_the_first_step(
    name: str, of_model: bool, tmp_path: Path
) -> None:
    make, way_out = REFUSED[name]
    made = [make()]
    run = quiet(tmp_path, callbacks=[] if of_model else made)
    with pytest.raises(InputError, match=f"^the callback {name} .*{way_out}"):
        run.fit(Measured(made if of_model else []), loader())
    assert run.global_step == 0 and not list(tmp_path.rglob("*.ckpt"))


def test_a_backbone_that_the_model_does_not_have_is_not_looked_for(tmp_path: Path) -> None:
    run = quiet(tmp_path, callbacks=[callbacks.BackboneFinetuning(1)])
    with pytest.raises(InputError, match=r"looks for model\.backbone, which Line does not have"):
        run.fit(Line(), loader())


AP = [{"name": "mAP", "params": {"class_metrics": True}}]


@pytest.mark.parametrize(
    ("extra", "metrics", "message"),
    [
        (callbacks.EarlyStopping("mAP"), AP, r"EarlyStopping's monitor='mAP' .*did you mean val/m"),
        (callbacks.EarlyStopping("val/map"), AP, "'val/map' is not logged by InstanceSegmentor"),
        (callbacks.EarlyStopping("xyz"), AP, "it logs val/mAP, .*val/mAP_mar_100.* and train/loss"),
        (callbacks.EarlyStopping("val/mAP"), [], "it has no metrics.*give the model metrics"),
        (callbacks.ModelCheckpoint(monitor="train/los"), AP, "ModelCheckpoint's.*mean train/loss"),
        (callbacks.ModelCheckpoint(monitor="lr-SGD"), AP, "monitor='lr-SGD' is not logged"),
        ({"best_metric": "val/mAP50"}, AP, "best_metric='val/mAP50' .*did you mean val/mAP_50"),
    ],
)
def test_what_nothing_logs_cannot_be_monitored(
    extra: Any, metrics: list[Any], message: str, tmp_path: Path
) -> None:
    options = extra if isinstance(extra, dict) else {"callbacks": [extra]}
    run = quiet(tmp_path, **options)
    with pytest.raises(InputError, match=message):
        run.fit(small(metrics=metrics), loader())
    assert run.global_step == 0 and not list(tmp_path.iterdir())


class OwnSegmentor(InstanceSegmentor):
    """May log anything."""


class OwnCallback(Callback):
    """May log anything, too."""


@pytest.mark.parametrize(
    ("monitor", "kind", "more"),
    [
        ("val/mAP_75", InstanceSegmentor, []),
        ("val/mAP_class_disc", InstanceSegmentor, []),
        ("train/masks_loss", InstanceSegmentor, []),
        ("train/lr", InstanceSegmentor, []),
        ("lr-AdamW", InstanceSegmentor, [callbacks.LearningRateMonitor()]),
        ("val/own", OwnSegmentor, []),
        ("val/own", InstanceSegmentor, [OwnCallback()]),
        ("val/own", InstanceSegmentor, [callbacks.LambdaCallback()]),
    ],
)
def test_what_is_or_may_be_logged_can_be_monitored(
    monitor: str, kind: type, more: list[Callback], tmp_path: Path
) -> None:
    run = quiet(tmp_path, callbacks=[callbacks.EarlyStopping(monitor), *more])
    check_callbacks(run.callbacks, small(kind, metrics=AP))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("EarlyStopping", "ModelCheckpoint", "WeightAveraging", "GradientAccumulationScheduler"),
        "BatchSizeFinder",
    ],
)
def test_a_callback_works_with_a_segmentor(name: str, tmp_path: Path) -> None:
    def trainer(epochs: int) -> Any:
        if name == "BatchSizeFinder":
            made = callbacks.BatchSizeFinder(max_trials=1)
        elif name == "EarlyStopping":
            made = callbacks.EarlyStopping("val/mAP", mode="max", patience=9)
        else:
            made = WORK[name](tmp_path)
        return trainer_with(made, tmp_path, max_epochs=epochs, limit_val_batches=1)

    def fit(run: Any, ckpt_path: str | None = None) -> None:
        data = InstanceSegmentationDataModule(SAMPLE, image_size=64, batch_size=2, num_workers=0)
        run.fit(
            small(num_classes=4, mask_size=12, mask_rois=2, metrics=[{"name": "mAP"}]),
            datamodule=data,
            ckpt_path=ckpt_path,
        )

    first = trainer(2)
    fit(first)
    again = trainer(3)
    fit(again, "last")
    assert again.global_step == first.global_step * 3 // 2
