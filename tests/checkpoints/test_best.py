"""The best checkpoint: by which metric, and when."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from line import Line, loader, quiet
from saves import Measured, names, run, state

from autotimm import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


def test_the_best_by_a_metric_is_kept(tmp_path: Path) -> None:
    model = Measured(0.2, 0.7, 0.5, 0.7, 0.1)
    trainer = run(tmp_path, model, max_epochs=5, best_metric="val/AP", keep_last=1)
    folder = tmp_path / "version_0"
    assert names(folder) == {
        "step_8.ckpt",
        "step_20.ckpt",
        "last.ckpt -> step_20.ckpt",
        "best.ckpt -> step_8.ckpt",
    }
    assert trainer.checkpoint_callback.best_model_path == str(
        (folder / "checkpoints" / "step_8.ckpt").absolute()
    )
    assert trainer.checkpoint_callback.best_model_score == pytest.approx(0.7)
    assert trainer.checkpoint_callback.current_score == pytest.approx(0.1)
    trainer.validate(Measured(0.0), loader(1), ckpt_path="best")
    assert trainer.ckpt_path == trainer.checkpoint_callback.best_model_path


@pytest.mark.parametrize(
    ("options", "best"),
    [
        ({"best_metric": "val/loss"}, "step_12"),
        ({"best_metric": "val/loss", "best_mode": "max"}, "step_8"),
        ({}, None),
    ],
)
def test_a_loss_is_best_when_it_is_small(
    options: dict[str, Any], best: str | None, tmp_path: Path
) -> None:
    run(tmp_path, Measured(0.5, 0.7, 0.2, name="val/loss"), max_epochs=3, **options)
    link = tmp_path / "version_0" / "checkpoints" / "best.ckpt"
    assert (link.readlink().stem if link.is_symlink() else None) == best


def test_the_first_metric_on_the_progress_bar_is_the_default(tmp_path: Path) -> None:
    model = Measured(0.5, 0.7, 0.2, name="val/mask")
    metrics = [{"name": n, "stages": s, "prog_bar": b} for n, s, b in METRICS]
    model.save_hyperparameters({"metrics": metrics})
    run(tmp_path, model, max_epochs=3)
    assert "best.ckpt -> step_8.ckpt" in names(tmp_path / "version_0")


@pytest.mark.parametrize(("name", "count"), [("val/box_50", 0), ("val/loss", 1), ("lr", 0)])
def test_a_best_metric_that_the_model_lacks_is_warned_of_at_once(
    name: str, count: int, tmp_path: Path
) -> None:
    model = Measured(0.5, name=name)
    model.save_hyperparameters(
        {"metrics": [{"name": n, "stages": s, "prog_bar": b} for n, s, b in METRICS]}
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(tmp_path, model, best_metric=name)
    message = f"best_metric={name!r} is none of the model's metrics, val/mask, val/box"
    assert [str(one.message) for one in caught].count(message) == count
    assert "best.ckpt -> step_4.ckpt" in names(tmp_path / "version_0")


METRICS = [("box", ["val"], False), ("late", ["test"], True), ("mask", ["val", "test"], True)]


def test_a_metric_that_is_not_logged_is_refused_before_the_training(tmp_path: Path) -> None:
    model = Measured(0.5, 0.5)
    with pytest.raises(InputError, match=r"best_metric='val/mAP' is not logged.*only val/AP"):
        run(tmp_path, model, best_metric="val/mAP", num_sanity_val_steps=1)
    assert model.weight.item() == 1


def test_a_best_one_in_mid_epoch_is_saved_after_its_validation(tmp_path: Path) -> None:
    """Even if a save is due before it, which would not have the score, and from which a resumed run
    would skip the validation."""
    saved: list[int] = []

    class Count(Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
            saved.append(trainer.global_step)

    run(
        tmp_path,
        Measured(0.1, 0.9, 0.2, 0.3),
        8,
        val_check_interval=2,
        save_every_n_steps=4,
        keep_last=-1,
        best_metric="val/AP",
        callbacks=[Count()],
    )
    assert saved == [2, 4, 8]
    folder = tmp_path / "version_0"
    assert names(folder) == {
        *(f"step_{step}.ckpt" for step in (2, 4, 8)),
        "last.ckpt -> step_8.ckpt",
        "best.ckpt -> step_4.ckpt",
    }
    known = state(folder / "checkpoints" / "step_4.ckpt")["callbacks"]["Checkpoints"]["files"]
    assert known == {"step_2.ckpt": pytest.approx(0.1), "step_4.ckpt": pytest.approx(0.9)}


def test_a_best_metric_that_nothing_measures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="best_metric is empty"):
        quiet(tmp_path, best_metric="")
    trainer = quiet(tmp_path, max_steps=1, best_metric="val/a", limit_val_batches=0)
    with pytest.raises(InputError, match="no effect with limit_val_batches=0"):
        trainer.fit(Line(), loader())
