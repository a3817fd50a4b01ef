"""AutoTrainer: its settings from the launcher, the arguments that it refuses, a run's files."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import random_batch, small
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import RichModelSummary, TQDMProgressBar
from line import Line, loader, quiet
from ranks import on_ranks
from torch.utils.data import DataLoader

from autotimm import AutoTrainer, InputError
from autotimm.checkpoints.settings import SaveSettings
from autotimm.outputs.pictures import SavePictures
from autotimm.training.defaults import all_callbacks
from autotimm.training.preemption import Preemption


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true", "foo"])
def test_precisions_without_float32_losses_are_refused(precision: str) -> None:
    with pytest.raises(InputError, match=f"precision='{precision}'.*16-mixed"):
        AutoTrainer(precision=precision)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("devices", value) for value in (-3, "abc", [0])),
        ("accumulate_grad_batches", 0),
        ("check_val_every_n_epoch", 0),
        ("val_check_interval", 0),
        ("gradient_clip_val", -1),
        *((name, 0) for name in ("max_epochs", "max_steps", "limit_train_batches")),
        ("limit_train_batches", 0.0),
        *(("max_time", time) for time in ("00:00:00:00", {"hours": 0}, timedelta(0))),
    ],
)
def test_invalid_numbers_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name}="):
        AutoTrainer(accelerator="cpu", **{name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": -1, "max_steps": 2},
        {"max_steps": -1, "max_epochs": 1, "max_time": "00:00:01:00"},
    ],
)
def test_runs_without_an_end_or_with_a_short_time_are_accepted(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Lightning's -1 means that there is no limit."""
    run = quiet(tmp_path, **options)
    run.fit(Line(), loader())
    assert run.global_step == (3 if "max_time" in options else 2)


def test_runs_without_a_logger_have_a_folder_each(tmp_path: Path) -> None:
    for steps in (1, 2):
        quiet(tmp_path, logger=False, max_steps=steps).fit(Line(), loader())
    for n, step in enumerate((1, 2)):
        folder = tmp_path / f"version_{n}"
        assert {path.name for path in folder.iterdir()} == {"checkpoints", "run.json"}
        assert (folder / "checkpoints" / "last.ckpt").readlink().name == f"step_{step}.ckpt"
    quiet(tmp_path, logger=False, max_steps=1, fast_dev_run=True).fit(Line(), loader())
    assert not (tmp_path / "version_2").exists()


def test_barebones_trains_and_writes_nothing(tmp_path: Path) -> None:
    run = AutoTrainer(
        accelerator="cpu", barebones=True, max_steps=2, default_root_dir=tmp_path / "runs"
    )
    run.fit(Line(), loader())
    assert run.global_step == 2 and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"barebones=True, logger="):
        AutoTrainer(accelerator="cpu", barebones=True, logger="csv")


def test_default_callbacks_give_way_to_those_of_the_user_and_their_kind() -> None:
    class Mine(SavePictures):
        pass

    def kinds(*given: Callback, **options: Any) -> list[str]:
        made = all_callbacks(given, SaveSettings(), timeout=timedelta(minutes=1), **options)
        assert made[: len(given)] == [*given]
        return [type(c).__name__ for c in made[len(given) :]]

    every = [
        *("CheckLoss", "Throughput", "LearningRate", "EpochLines", "SavePictures"),
        *("SaveResults", "SaveCurves", "RunRecord", "KeepState", "FirstStep", "Summary"),
        *("Checkpoints", "Preemption", "ProgressBar"),
    ]
    assert kinds() == every
    assert kinds(Mine()) == [name for name in every if name != "SavePictures"]
    assert "ProgressBar" not in kinds(TQDMProgressBar())
    assert "Summary" not in kinds(RichModelSummary())
    assert kinds(summary=False, bar=False, saves=False) == every[:-4]
    assert kinds(barebones=True) == ["CheckLoss", "Checkpoints", "Preemption", "ProgressBar"]
    more = [*every[:-4], "AverageWeights", "StopEarly", *every[-4:]]
    assert kinds(ema_decay=0.9, patience=3) == more


def test_a_rank_that_hangs_is_named_before_the_timeout_of_the_collectives() -> None:
    """The timeout of a collective would end the process without naming a rank."""
    run = AutoTrainer(accelerator="cpu", strategy="ddp", devices=2, timeout_minutes=10)
    (own,) = (one for one in run.callbacks if isinstance(one, Preemption))
    assert timedelta(minutes=8) < own._timeout < run.strategy._timeout == timedelta(minutes=10)


def test_the_last_checkpoint_is_that_of_the_last_epoch(tmp_path: Path) -> None:
    """Even if the last epochs have no validation."""
    quiet(tmp_path, max_epochs=5, check_val_every_n_epoch=3).fit(Line(), loader(), loader(1))
    state = torch.load(tmp_path / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 15


@pytest.mark.slow
def test_accumulated_batches_make_one_clipped_step_of_their_mean(tmp_path: Path) -> None:
    """Three batches make steps of two and of one, compared with gradients averaged by hand."""
    batches = [random_batch([2, 1], seed=i) for i in range(3)]
    settings = {"optimizer": "sgd", "lr": 0.1, "scheduler": None, "weight_decay": 0.0}
    model = small(**settings)

    def seeded(step: Any) -> Any:
        def run(batch: Any, batch_idx: int) -> Any:
            torch.manual_seed(batch_idx)  # determines the sampled RoIs
            return step(batch, batch_idx)

        return run

    model.training_step = seeded(model.training_step)
    run = quiet(tmp_path, max_epochs=1, accumulate_grad_batches=2, gradient_clip_val=0.5)
    run.fit(model, DataLoader(batches, batch_size=None))
    assert run.global_step == 2

    twin = small(**settings)
    twin.log = twin.log_dict = lambda *_, **__: None
    step = seeded(twin.training_step)
    weights = [p for p in twin.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, 0.1, momentum=0.9)
    for indices in ([0, 1], [2]):
        # Lightning divides by the batches of a full step even if the last step has fewer.
        (sum(step(batches[i], i) for i in indices) / 2).backward()
        norm = torch.cat([p.grad.flatten() for p in weights]).norm()
        assert norm > 0.5
        for p in weights:
            p.grad *= 0.5 / norm
        optimizer.step()
        optimizer.zero_grad()
    for (name, found), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6), name


@pytest.mark.slow
def test_ranks_wait_for_gloos_threads_when_they_end(tmp_path: Path) -> None:
    """In this test, a Python thread with unfinished work stands for one of them."""
    done = on_ranks(
        """
        import os, sys, threading, time
        from line import Line, loader, quiet

        quiet(sys.argv[1], strategy="ddp", max_steps=1, logger=False).fit(Line(), loader())

        def let_go():
            time.sleep(0.02)
            os.write(1, b"let go\\n")

        threading.Thread(target=let_go, daemon=True).start()
        """,
        tmp_path,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("let go") == 2
