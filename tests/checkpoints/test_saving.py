"""When a run saves, what it keeps, and that a failed save does not harm it."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.utilities import _scan_checkpoints
from line import Line, loader, quiet
from ranks import on_ranks

from autotimm import AutoTrainer, InputError
from autotimm.checkpoints import callback
from autotimm.checkpoints.callback import Checkpoints, steps_to_wait
from autotimm.checkpoints.resume import damage_of, newest
from autotimm.checkpoints.retention import kept, point
from autotimm.checkpoints.storage import whole_folder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Measured(Line):
    """Logs a given value at each validation."""

    def __init__(self, *values: float, name: str = "val/AP") -> None:
        super().__init__()
        self.values, self.name = list(values), name

    def on_validation_epoch_end(self) -> None:
        self.log(self.name, self.values.pop(0))


def names(folder: Path) -> set[str]:
    """The checkpoints in a run's folder, and the targets of its links."""
    checkpoints = folder / "checkpoints"
    return {
        f"{p.name} -> {p.readlink()}" if p.is_symlink() else p.name for p in checkpoints.iterdir()
    }


def state(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def run(folder: Path, model: Line, batches: int = 4, **options: Any) -> AutoTrainer:
    trainer = quiet(folder, **{"max_epochs": 1, "num_sanity_val_steps": 0, **options})
    validated = loader(1) if isinstance(model, Measured) else None
    trainer.fit(model, loader(batches), validated)
    return trainer


SCORES = {"a": 0.1, "b": None, "c": 0.3, "d": float("nan"), "e": 0.3, "f": 0.2}


@pytest.mark.parametrize(
    ("last", "best", "mode", "expected"),
    [
        (1, 0, "max", "f"),
        (1, 1, "max", "cf"),
        (2, 1, "max", "cfe"),
        (1, 2, "max", "cef"),
        (1, 3, "max", "cef"),
        (1, 4, "max", "cefa"),
        (1, 9, "max", "cefad"),
        (1, 1, "min", "af"),
        (1, 9, "min", "afced"),
        (-1, 1, "max", "cfedba"),
        (0, 1, "max", "c"),
        (9, 0, "max", "fedcba"),
    ],
)
def test_the_newest_and_the_best_are_kept(last: int, best: int, mode: str, expected: str) -> None:
    assert kept(SCORES, last, best, mode) == list(expected)


def test_without_checkpoints_nothing_is_kept() -> None:
    assert kept({}, 2, 1, "max") == []
    assert kept({"a": None}, 0, 1, "max") == []


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


def test_every_so_many_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looks = [0.0], [0]
    monkeypatch.setattr(callback.time, "monotonic", lambda: clock[0])

    class Slow(Line):
        def training_step(self, batch, batch_idx):
            clock[0] += 1.0
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


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)


@pytest.mark.usefixtures("no_links")
def test_where_links_cannot_be_made_the_newest_is_there_twice(tmp_path: Path) -> None:
    run(tmp_path, Line(), max_epochs=3)
    folder = tmp_path / "version_0"
    assert names(folder) == {"step_8.ckpt", "step_12.ckpt", "last.ckpt"}
    assert state(folder / "checkpoints" / "last.ckpt")["global_step"] == 12


@pytest.mark.usefixtures("no_links")
def test_where_links_cannot_be_made_a_folder_is_there_twice(tmp_path: Path) -> None:
    for step in (1, 2):
        with whole_folder(tmp_path / f"step_{step}.ckpt", step) as folder:
            (folder / "checkpoint").mkdir()
            (folder / "checkpoint" / "weights").write_bytes(b"w" * step)
        point(tmp_path / "last.ckpt", f"step_{step}.ckpt")
    copy, whole = tmp_path / "last.ckpt", tmp_path / "step_2.ckpt"
    for name in ("checkpoint/weights", "complete.json"):
        assert (copy / name).read_bytes() == (whole / name).read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"step_1.ckpt", "step_2.ckpt", "last.ckpt"}
    assert damage_of(copy) is None


def test_old_checkpoints_are_removed_once_links_can_be_set_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = callback.point

    def fail(link: Path, name: str) -> None:
        if name == "step_8.ckpt":
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(link, name)

    monkeypatch.setattr(callback, "point", fail)
    with pytest.warns(UserWarning, match=r"step_8\.ckpt: No space left"):
        run(tmp_path, Line(), max_epochs=2, keep_last=1)
    folder = tmp_path / "version_0"
    assert names(folder) == {"step_4.ckpt", "step_8.ckpt", "last.ckpt -> step_4.ckpt"}
    with pytest.warns(UserWarning, match=r"step_8\.ckpt: No space left"):
        run(tmp_path, Line(), max_epochs=3, keep_last=1)
    assert names(tmp_path / "version_1") == {"step_12.ckpt", "last.ckpt -> step_12.ckpt"}


def test_a_checkpoint_that_cannot_be_removed_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "step_4.ckpt":
            raise OSError(errno.EPERM, "Operation not permitted")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.warns(UserWarning, match=r"step_4\.ckpt .*cannot be removed: Operation not"):
        run(tmp_path, Line(), max_epochs=4)
    assert names(tmp_path / "version_0") == {
        *("step_4.ckpt", "step_12.ckpt", "step_16.ckpt", "last.ckpt -> step_16.ckpt")
    }


class Big(Line):
    """A model that grows, so that a later checkpoint does not fit."""

    def __init__(self, grows_at: int) -> None:
        super().__init__()
        self.grows_at = grows_at

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["bulk"] = torch.zeros(60_000 if self.global_step == self.grows_at else 1)


@pytest.fixture
def small_files():
    """Limits files to 100,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_fails_does_not_end_the_run(tmp_path: Path, small_files: None) -> None:
    with pytest.warns(UserWarning, match=r"step_8\.ckpt: .*goes on.*newest checkpoint: .*step_4"):
        run(tmp_path, Big(grows_at=8), max_epochs=3)
    assert names(tmp_path / "version_0") == {
        *("step_4.ckpt", "step_12.ckpt", "last.ckpt -> step_12.ckpt")
    }


def test_a_save_that_fails_at_the_end_is_an_error(tmp_path: Path, small_files: None) -> None:
    with (
        pytest.warns(UserWarning, match=r"step_8\.ckpt: File too large"),
        pytest.raises(InputError, match=r"cannot write the checkpoint .*step_8\.ckpt: File too"),
    ):
        run(tmp_path, Big(grows_at=8), max_epochs=2)
    folder = tmp_path / "version_0"
    assert names(folder) == {"step_4.ckpt", "last.ckpt -> step_4.ckpt"}
    found = newest(folder)
    assert found is not None
    assert found.name == "step_4.ckpt"


def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a small tmpfs, which takes root")
    try:
        with pytest.warns(UserWarning, match=r"step_8\.ckpt: No space left on device; the train"):
            run(disk, Bulky(), max_epochs=3, keep_last=1)
        # Each has 300 kB, so a second one does not fit.
        assert names(disk / "version_0") == {"step_4.ckpt", "last.ckpt -> step_4.ckpt"}
    except InputError as error:
        assert "step_12.ckpt: No space left" in str(error)
        found = newest(disk / "version_0")
        assert found is not None
        assert found.name == "step_4.ckpt"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


class Bulky(Line):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["bulk"] = torch.zeros(80_000)


RANKS = """
import os, resource, sys, warnings
import torch.distributed as dist
from line import quiet, loader
from test_saving import Big
from autotimm import InputError

if int(os.environ["RANK"]) == 0:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
warnings.simplefilter("ignore")
trainer = quiet(sys.argv[1], max_epochs=3, strategy="ddp", save_every_minutes=1000)
trainer.fit(Big(grows_at=8), loader(4))
print(f"went on to step {trainer.global_step}", flush=True)  # whole, as the other rank prints too
try:
    quiet(sys.argv[1], max_epochs=2, strategy="ddp").fit(Big(grows_at=8), loader(4))
except InputError as error:
    print(f"error: {error}", flush=True)
"""


@pytest.mark.slow
def test_all_ranks_raise_an_error_if_the_first_cannot_write(tmp_path: Path) -> None:
    done = on_ranks(RANKS, tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("went on to step 12") == 2
    assert done.stdout.count("step_8.ckpt: ") == 2
    assert names(tmp_path / "version_0") == {
        *("step_4.ckpt", "step_12.ckpt", "last.ckpt -> step_12.ckpt")
    }


def test_a_best_metric_that_nothing_measures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="best_metric is empty"):
        quiet(tmp_path, best_metric="")
    trainer = quiet(tmp_path, max_steps=1, best_metric="val/a", limit_val_batches=0)
    with pytest.raises(InputError, match="no effect with limit_val_batches=0"):
        trainer.fit(Line(), loader())
