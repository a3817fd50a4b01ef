"""``patience`` ends a fit by the metric of the best checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from line import loader, quiet
from saves import Measured

from autotimm import InputError
from autotimm.training.early_stopping import StopEarly

NAN = float("nan")


def fit(root: Path, model: Measured, ckpt_path: Any = None, **options: Any) -> Any:
    options = {"max_epochs": 8, "best_metric": model.name, "num_sanity_val_steps": 0, **options}
    run = quiet(root, **options)
    run.fit(model, loader(1), loader(1), ckpt_path=ckpt_path)
    return run


@pytest.mark.parametrize(
    ("scores", "patience", "epochs"),
    [
        ([0.1, 0.2, 0.2, 0.1, 0.3, 0.3, 0.3, 0.3], 2, 4),  # an equal one is not better
        ([0.1, 0.2, 0.2, 0.1, 0.3, 0.3, 0.3, 0.3], 3, 8),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], 1, 8),
        ([0.1, NAN, NAN, 0.2, 0.3, 0.4, 0.5, 0.6], 2, 3),  # a metric that failed
    ],
)
def test_a_fit_ends_after_so_many_validations(
    scores: list[float], patience: int, epochs: int, tmp_path: Path
) -> None:
    assert fit(tmp_path, Measured(*scores), patience=patience).current_epoch == epochs


def test_a_loss_is_better_where_it_is_smaller(tmp_path: Path) -> None:
    losses = [0.5, 0.4, 0.3, 0.4, 0.5, 0.2, 0.1, 0.0]
    assert fit(tmp_path, Measured(*losses, name="val/loss"), patience=2).current_epoch == 5


def test_a_resumed_run_remembers_and_takes_the_new_patience(tmp_path: Path) -> None:
    scores = [0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    first = fit(tmp_path, Measured(*scores), patience=5, max_epochs=3)
    last = first.checkpoint_callback.last_model_path
    assert fit(tmp_path, Measured(*scores[3:]), last, patience=5).current_epoch == 6
    assert fit(tmp_path, Measured(*scores[3:]), last, patience=3).current_epoch == 4


def test_a_run_that_goes_on_by_another_metric_begins_to_count_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = fit(tmp_path, Measured(0.5, 0.4, 0.4, 0.4), patience=2, max_epochs=8)
    assert first.current_epoch == 3  # ended by patience
    last = first.checkpoint_callback.last_model_path
    losses = Measured(1.2, 1.1, 1.0, 0.9, 0.8, name="val/loss")
    caplog.clear()
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        assert fit(tmp_path, losses, last, patience=2).current_epoch == 8
    assert "ended early" not in caplog.text


@pytest.mark.parametrize("patience", [0, -1, 1.5, True, "3"])
def test_other_values_are_refused(patience: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"patience=.* must be a whole number of validations"):
        StopEarly(patience)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit_val_batches": 0, "best_metric": None}, "patience has no effect with limit_val"),
        ({"best_metric": None}, "patience needs the metric of the best checkpoint"),
    ],
)
def test_what_gives_no_metric_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        fit(tmp_path, Measured(*[0.1] * 8), patience=2, **options)


def test_a_run_that_ended_early_is_finished_for_the_same_patience(tmp_path: Path) -> None:
    from autotimm.training.earlier_runs import finished

    scores = [0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    run = fit(tmp_path, Measured(*scores), patience=2)
    assert run.current_epoch == 3
    last = Path(run.checkpoint_callback.last_model_path)
    told = f"2 validations without a better {Measured(*scores).name}"
    assert finished(last, 8, -1, StopEarly(2)) == told
    assert finished(last, 8, -1, StopEarly(1)) == told
    assert finished(last, 8, -1, StopEarly(2, Measured(*scores).name)) == told
    # More patience, none, and another metric train on.
    for stop in (StopEarly(3), None, StopEarly(2, "val/other")):
        assert finished(last, 8, -1, stop) == ""
    again = quiet(tmp_path, max_epochs=8, patience=2, num_sanity_val_steps=0)
    again.leaves_finished_runs = True
    again.fit(Measured(*scores), loader(1), loader(1), ckpt_path=last)
    assert again.global_step == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "version_0"]
