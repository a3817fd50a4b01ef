"""When a run saves, and what a run that goes on does with what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.utilities import _scan_checkpoints
from line import Line, loader, quiet
from saves import Measured, names, run, state

from autotimm import AutoTrainer, InputError
from autotimm.checkpoints import clock
from autotimm.checkpoints.callback import Checkpoints
from autotimm.checkpoints.clock import steps_to_wait

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_every_n_steps": 0}, "save_every_n_steps=0 must be at least 1"),
        ({"save_every_n_epochs": -1}, "save_every_n_epochs=-1 must be 0 or more"),
        ({"save_every_minutes": 0}, "save_every_minutes=0 must be a number above 0"),
        ({"save_every_minutes": float("nan")}, "save_every_minutes=nan"),
        ({"keep_last": 0}, "keep_last=0 must be at least 1, or -1"),
        ({"keep_best": -1}, "keep_best=-1"),
        ({"best_metric": "a", "best_mode": "most"}, "best_mode='most' must be max or min"),
        ({"best_mode": "max"}, "best_mode has no effect without best_metric"),
        ({"best_metric": "a", "keep_best": 0}, "best_metric has no effect with keep_best=0"),
        *(
            (
                {"enable_checkpointing": False, name: value},
                f"saves nothing: leave out {name}={value}",
            )
            for name, value in (
                *(("save_every_n_steps", 1), ("save_every_n_epochs", 2), ("keep_last", 3)),
                *(("keep_best", 0), ("best_metric", "val/AP"), ("save_every_minutes", 1)),
            )
        ),
        ({"default_root_dir": "s3://key:secret@bucket/runs"}, "default_root_dir=s3://bucket/runs:"),
        ({"ema_decay": 1.0}, "ema_decay=1.0 must lie between 0 and 1"),
    ],
)
def test_invalid_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AutoTrainer(accelerator="cpu", **options)


def test_after_every_epoch_and_the_last_two_are_kept(tmp_path: Path) -> None:
    trainer = run(tmp_path, Line(), 3, max_epochs=4)
    assert names(tmp_path / "version_0") == {
        "step_9.ckpt",
        "step_12.ckpt",
        "last.ckpt -> step_12.ckpt",
    }
    checkpoints = trainer.checkpoint_callback
    assert isinstance(checkpoints, Checkpoints)
    assert checkpoints.last_model_path == checkpoints.best_model_path
    assert state(Path(checkpoints.last_model_path))["global_step"] == 12
    # Loggers that upload checkpoints read these.
    scanned = _scan_checkpoints(checkpoints, {})
    assert {Path(path).name for _, path, _, _ in scanned} == {"step_12.ckpt"}


def test_after_every_second_epoch(tmp_path: Path) -> None:
    run(tmp_path, Line(), 3, max_epochs=5, save_every_n_epochs=2, keep_last=-1)
    assert names(tmp_path / "version_0") == {
        *("step_6.ckpt", "step_12.ckpt"),
        *("step_15.ckpt", "last.ckpt -> step_15.ckpt"),  # the end
    }


def test_after_so_many_steps_of_the_optimizer(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    class Look(Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
            ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            seen.append((trainer.global_step, ready))

    run(
        tmp_path,
        Line(),
        11,
        accumulate_grad_batches=3,
        save_every_n_steps=2,
        save_every_n_epochs=0,
        keep_last=-1,
        callbacks=[Look()],
        max_epochs=2,
    )
    # 4 steps an epoch, the last of 2 batches; steps 4 and 8 end the epochs.
    assert seen == [(2, 6), (4, 11), (6, 6), (8, 11)]
    assert names(tmp_path / "version_0") == {
        *(f"step_{step}.ckpt" for step in (2, 4, 6, 8)),
        "last.ckpt -> step_8.ckpt",
    }


def test_what_was_not_due_is_saved_at_the_end(tmp_path: Path) -> None:
    run(tmp_path, Line(), 5, save_every_n_epochs=0)
    assert names(tmp_path / "version_0") == {"step_5.ckpt", "last.ckpt -> step_5.ckpt"}
    run(tmp_path, Line(), 5, fast_dev_run=True)
    assert not (tmp_path / "version_1").exists()


@pytest.mark.parametrize(("interval", "step"), [(None, 8), (3, 3)])
def test_without_a_sanity_check_the_training_before_the_error_is_saved(
    interval: int | None, step: int, tmp_path: Path
) -> None:
    """A run that resumes from there equals an uninterrupted one."""
    options = {"val_check_interval": interval, "num_sanity_val_steps": 0, "save_every_n_epochs": 0}
    with pytest.raises(InputError, match=r"best_metric='val/mAP' is not logged"):
        run(tmp_path, Measured(0.5, 0.5), 8, best_metric="val/mAP", **options)
    folder = tmp_path / "version_0"
    assert names(folder) == {f"step_{step}.ckpt", f"last.ckpt -> step_{step}.ckpt"}
    truth, rest = Measured(*[0.5] * 6), Measured(*[0.5] * 6)
    quiet(tmp_path, max_epochs=2, **options).fit(truth, loader(8), loader(1))
    trainer = quiet(tmp_path, max_epochs=2, **options)
    trainer.fit(rest, loader(8), loader(1), ckpt_path=folder / "checkpoints" / "last.ckpt")
    assert trainer.global_step == 16
    assert rest.weight.item() == truth.weight.item()


def test_every_so_many_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = [0.0], [0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])

    class Slow(Line):
        def training_step(self, batch, batch_idx):
            now[0] += 1.0
            return super().training_step(batch, batch_idx)

    class Count(Callback):
        def on_train_start(self, trainer, pl_module) -> None:
            broadcast = trainer.strategy.broadcast

            def counted(*given):
                looks[0] += 1
                return broadcast(*given)

            trainer.strategy.broadcast = counted

    run(
        tmp_path,
        Slow(),
        200,
        save_every_minutes=1,
        save_every_n_epochs=0,
        keep_last=-1,
        callbacks=[Count()],
    )
    assert {n for n in names(tmp_path / "version_0") if "->" not in n} == {
        *("step_60.ckpt", "step_120.ckpt", "step_180.ckpt", "step_200.ckpt")
    }
    assert looks[0] < 40  # fewer than the 200 steps


@pytest.mark.parametrize(
    ("left", "pace", "expected"), [(100, 1, 50), (1, 1, 1), (-5, 1, 1), (9, 0, 1)]
)
def test_the_clock_is_looked_at_ever_more_often(left: float, pace: float, expected: int) -> None:
    if pace:
        assert steps_to_wait(left, pace) == expected
    else:
        assert steps_to_wait(left, pace) > 1000


def resumed(folder: Path, root: Path, path: str, **options: Any) -> AutoTrainer:
    """A fit that resumes from a checkpoint, in the folder of the run that saved it."""
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(root, name="", version=folder.name)
    trainer = quiet(root, logger=logger, num_sanity_val_steps=0, **options)
    model = Measured(*options.pop("values", [])) if "values" in options else Line()
    trainer.fit(model, loader(4), ckpt_path=folder / "checkpoints" / path)
    return trainer


def test_a_run_that_goes_on_keeps_house_in_its_folder(tmp_path: Path) -> None:
    run(tmp_path, Measured(0.9, 0.1), max_epochs=2, best_metric="val/AP", keep_last=1)
    folder = tmp_path / "version_0"
    inside = folder / "checkpoints"
    assert {"step_4.ckpt", "step_8.ckpt"} <= names(folder)
    # As if killed before the old one was removed, and in the middle of the next save.
    for left in (".step_12.ckpt.0a1b2c3d.tmp", ".last.ckpt.0a1b2c3d.tmp"):
        (inside / left).write_bytes(b"half of it")
    (inside / ".step_16.ckpt.new.tmp").mkdir()
    (inside / "step_1.ckpt").write_bytes(b"of somebody else")
    content = state(inside / "step_8.ckpt")
    outside = tmp_path / "step_1.ckpt"
    outside.write_bytes(b"not to be removed")
    files = content["callbacks"]["Checkpoints"]["files"]
    content["callbacks"]["Checkpoints"]["files"] = {"../../step_1.ckpt": None, **files}
    torch.save(content, inside / "step_8.ckpt")
    resumed(folder, tmp_path, "last.ckpt", max_epochs=4, best_metric="val/AP", keep_last=1)
    assert names(folder) == {
        "step_1.ckpt",
        "step_4.ckpt",  # the best one, from the first part
        "step_16.ckpt",
        "last.ckpt -> step_16.ckpt",
        "best.ckpt -> step_4.ckpt",
    }
    assert outside.exists()


def test_a_run_that_goes_on_elsewhere_leaves_the_old_folder_alone(tmp_path: Path) -> None:
    run(tmp_path, Line(), max_epochs=2)
    before = names(tmp_path / "version_0")
    trainer = quiet(tmp_path, max_epochs=5)
    trainer.fit(Line(), loader(4), ckpt_path=tmp_path / "version_0" / "checkpoints" / "last.ckpt")
    assert names(tmp_path / "version_0") == before
    assert names(tmp_path / "version_1") == {
        *("step_16.ckpt", "step_20.ckpt", "last.ckpt -> step_20.ckpt")
    }


def test_a_run_that_goes_on_elsewhere_has_a_best_one_of_its_own(tmp_path: Path) -> None:
    options = {"best_metric": "val/AP", "num_sanity_val_steps": 0}
    run(tmp_path, Measured(0.9, 0.1), max_epochs=2, **options)
    trainer = quiet(tmp_path, max_epochs=4, **options)
    last = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    trainer.fit(Measured(0.3, 0.2), loader(4), loader(1), ckpt_path=last)
    assert names(tmp_path / "version_1") == {
        *("step_12.ckpt", "step_16.ckpt", "last.ckpt -> step_16.ckpt", "best.ckpt -> step_12.ckpt")
    }


def test_a_checkpoint_callback_of_the_users_comes_on_top(tmp_path: Path) -> None:
    every = ModelCheckpoint(filename="mine-{step}", every_n_train_steps=2, save_top_k=-1)
    plain = ModelCheckpoint(save_last=True)
    run(tmp_path, Line(), max_epochs=2, callbacks=[every, plain])
    assert {"mine-step=2.ckpt", "mine-step=8.ckpt", "step_4.ckpt", "step_8.ckpt"} <= names(
        tmp_path / "version_0"
    )
    last = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    assert state(last)["global_step"] == 8
