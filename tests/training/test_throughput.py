"""The speed of a run, what bounds it, and the line per epoch, with clocks that the tests set."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from line import Line, loader, quiet
from torch.utils.data import DataLoader, IterableDataset

from autotimm import AutoTrainer
from autotimm.training import epoch_lines, throughput
from autotimm.training.epoch_lines import fitting
from autotimm.training.throughput import Throughput


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    return now


class Timed(Line):
    """A step takes one second, and a validation a thousand."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__()
        self.clock = clock

    def training_step(self, batch, batch_idx):
        self.clock[0] += 1
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.clock[0] += 1000
        return super().validation_step(batch, batch_idx)


class Slow(IterableDataset):
    """A batch takes three seconds."""

    def __init__(self, clock: list[float], batches: int) -> None:
        self.clock, self.batches = clock, batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        for batch in loader(self.batches):
            self.clock[0] += 3
            yield batch


class Telling(DataLoader):
    """Reports one second of waiting per batch, whatever it took."""

    waited = 0.0

    def __iter__(self):
        for batch in super().__iter__():
            self.waited += 1
            yield batch


def test_images_per_second_leaves_validation_out(tmp_path: Path, clock: list[float]) -> None:
    run = quiet(tmp_path, max_epochs=1, val_check_interval=3)
    run.fit(Timed(clock), loader(6), loader(1))
    assert run.logged_metrics["train/images_per_second"] == pytest.approx(2.0)
    assert run.logged_metrics["train/data_wait"] == 0


def test_waiting_for_data_is_distinguished_from_computing(
    tmp_path: Path, clock: list[float]
) -> None:
    run = quiet(tmp_path, max_epochs=2, val_check_interval=4)
    data = DataLoader(Slow(clock, 8), batch_size=None)
    run.fit(Timed(clock), data, loader(1))
    assert run.logged_metrics["train/images_per_second"] == pytest.approx(0.5)
    assert run.logged_metrics["train/data_wait"] == pytest.approx(0.75)


def test_the_line_of_an_epoch_has_the_mean_of_its_losses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses: list[float] = []

    class Falling(Line):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            losses.append(loss.item())
            return loss

    quiet(tmp_path, max_epochs=2, accumulate_grad_batches=2).fit(Falling(), loader(5))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    means = [sum(losses[:5]) / 5, sum(losses[5:]) / 5]
    assert means[0] > 1.1 * means[1]
    assert [line.split(",")[0] for line in lines] == [
        f"epoch {n} of 2: loss {mean:.4g}" for n, mean in enumerate(means, 1)
    ]


def test_a_loader_that_measures_its_waits_is_believed(tmp_path: Path, clock: list[float]) -> None:
    run = quiet(tmp_path, max_epochs=2, val_check_interval=4)
    run.fit(Timed(clock), Telling(Slow(clock, 8), batch_size=None), loader(1))
    assert run.logged_metrics["train/data_wait"] == pytest.approx(0.25)


def test_the_start_of_a_resumed_epoch_is_left_out_too(tmp_path: Path, clock: list[float]) -> None:
    class Compiling(Timed):
        first = True

        def training_step(self, batch, batch_idx):
            self.clock[0] += 500 if self.first else 0
            self.first = False
            return super().training_step(batch, batch_idx)

    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
    first = quiet(tmp_path, max_steps=4, callbacks=saving, limit_val_batches=0)
    first.fit(Timed(clock), loader(10))
    run = quiet(tmp_path, max_epochs=1, limit_val_batches=0)
    run.fit(Compiling(clock), loader(10), ckpt_path=tmp_path / "step=4.ckpt")
    assert run.global_step > 4
    assert run.logged_metrics["train/images_per_second"] == pytest.approx(2.0)


def test_logged_steps_describe_the_time_since_the_last(tmp_path: Path, clock: list[float]) -> None:
    speeds: list[tuple[float, float]] = []

    class Faster(Timed):
        def training_step(self, batch, batch_idx):
            self.clock[0] += 9 if batch_idx < 6 else 0  # ten seconds, later one
            return super().training_step(batch, batch_idx)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            (callback,) = (c for c in self.trainer.callbacks if isinstance(c, Throughput))
            if callback.recent and (not speeds or speeds[-1] != callback.recent):
                speeds.append(callback.recent)

    run = quiet(tmp_path, max_epochs=1, log_every_n_steps=2, limit_val_batches=0)
    run.fit(Faster(clock), loader(10))
    assert [speed for speed, _ in speeds] == pytest.approx([0.2, 2.0])


def test_images_of_all_ranks_count(clock: list[float]) -> None:
    callback, logged = Throughput(skip=1), {}
    run: Any = SimpleNamespace(world_size=4, log_every_n_steps=1, train_dataloader=None)
    model: Any = SimpleNamespace(device=torch.device("cpu"), log=logged.__setitem__)
    callback.on_train_epoch_start(run, model)
    for run.global_step in (1, 2):
        clock[0] += 2
        callback.on_train_batch_end(run, model, None, {"image": torch.zeros(3, 1, 1, 1)}, 0)
    callback.on_train_epoch_end(run, model)
    assert logged["train/images_per_second"] == 4 * 3 / 2


def test_the_remaining_time_follows_from_the_speed_so_far(clock: list[float]) -> None:
    callback = Throughput()
    run: Any = SimpleNamespace(
        global_step=100, estimated_stepping_batches=1000, train_dataloader=None
    )
    callback.on_train_start(run, Line())
    assert callback.remaining(run) is None
    clock[0], run.global_step = 60.0, 130
    assert callback.remaining(run) == timedelta(seconds=870 * 2)
    run.estimated_stepping_batches = float("inf")
    assert callback.remaining(run) is None


def test_the_rate_of_a_step_is_logged_with_it(tmp_path: Path) -> None:
    class Stepped(Line):
        def configure_optimizers(self):
            groups = [{"params": [self.weight], "lr": 0.1}, {"params": [self.other], "lr": 0.4}]
            optimizer = torch.optim.SGD(groups)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        def log(self, name, *args, **options):
            if name == "train/lr":
                logged.append(self.trainer.global_step + 1)
            super().log(name, *args, **options)

    logged: list[int] = []
    model = Stepped()
    model.other = torch.nn.Parameter(torch.tensor(0.0))
    run = quiet(tmp_path, max_epochs=1, log_every_n_steps=2, limit_val_batches=0, logger="csv")
    run.fit(model, loader(5))
    with (tmp_path / "version_0" / "metrics.csv").open(newline="") as file:
        rates = [float(row["train/lr"]) for row in csv.DictReader(file) if row["train/lr"]]
    assert rates == pytest.approx([0.2, 0.1])
    assert logged == [2, 4]  # logging a number makes the host wait for a GPU


class Event:
    """A CUDA event at ``at`` seconds; the device has passed it unless ``ahead``."""

    def __init__(self, at: float, ahead: bool = False) -> None:
        self.at, self.ahead = at, ahead

    def query(self) -> bool:
        return not self.ahead

    def elapsed_time(self, other: Event) -> float:
        return (other.at - self.at) * 1000


def test_a_gpu_that_was_busy_did_not_wait() -> None:
    callback = Throughput()
    gap: Any = throughput._Gap
    callback._gaps.extend(
        [
            gap(Event(1.0), Event(1.5), 2.0),  # idle for a part of the loader's time
            gap(Event(3.0), Event(3.0), 2.0),  # had enough work
            gap(Event(4.0), Event(9.0), 0.5),  # idle for another reason
            gap(Event(9.0), Event(10.0, ahead=True), 5.0),
        ]
    )
    callback._add_gaps(finished=False)
    assert callback._waited == pytest.approx(0.5 + 0 + 0.5)
    callback._add_gaps(finished=True)
    assert callback._waited == pytest.approx(1.0 + 1.0)


@pytest.mark.gpu
def test_on_a_gpu_a_slow_loader_is_found_out(tmp_path: Path) -> None:
    class Late(DataLoader):
        waited = 0.0

        def __iter__(self):
            for batch in super().__iter__():
                time.sleep(0.05)
                self.waited += 0.05
                yield batch

    run = AutoTrainer(accelerator="gpu", devices=1, default_root_dir=tmp_path, max_epochs=1)
    run.fit(Line(), Late(loader(12).dataset, batch_size=None))
    assert run.logged_metrics["train/data_wait"] > 0.5
    assert run.logged_metrics["train/gpu_memory_gib"] >= 0


def test_a_line_has_what_fits_into_80_columns() -> None:
    head, parts = "epoch 12 of 50:", ["loss 1.234", "box_mAP 0.498", "mask_mAP 0.512"]
    whole = fitting(head, [*parts, "2:13 to go", "3.4 images/s", "wait 2%"])
    assert whole == f"{head} {', '.join(parts)}, 2:13 to go, wait 2%"
    exact = fitting(head, ["a" * 63, "b"])
    assert exact == f"{head} {'a' * 63}" and fitting(head, ["a" * 60, "b"]).endswith(", b")
    assert len(fitting(head, ["a" * 60, "b"])) == 79


def test_a_run_that_waits_for_data_is_advised_once(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound, count in ((0.0, 1), (2.0, 0)):
        monkeypatch.setattr(epoch_lines, "BOUND", bound)
        quiet(tmp_path, max_epochs=2).fit(Line(), loader())
        out = capsys.readouterr().out
        assert out.count("time goes into waiting for data: raise --data.num_workers") == count
        assert out.count("data wait ") == 2


@pytest.mark.parametrize("batches_a_step", [1, 2])
def test_a_line_an_epoch_goes_where_no_bar_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture, batches_a_step: int
) -> None:
    class Known(Line):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 0 + batch_idx  # 0, 1 and 2

    run = quiet(tmp_path, max_epochs=2, accumulate_grad_batches=batches_a_step)
    run.fit(Known(), loader())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.partition(":")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert all("loss 1, " in line for line in lines)
    assert all("data wait " in line and " images/s" in line for line in lines)
    assert "to go" not in lines[1]


def test_a_line_has_ap_if_it_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    class Measured(Line):
        def on_validation_epoch_end(self):
            self.log("val/mask_mAP", 0.25 + self.current_epoch)

    run = quiet(tmp_path, max_epochs=5, check_val_every_n_epoch=2, best_metric="val/mask_mAP")
    run.fit(Measured(), loader(), loader(1))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    values = [line.partition("mAP ")[2].partition(",")[0] for line in lines]
    assert values == ["", "1.25", "", "3.25", "4.25"]  # always after the last epoch


@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_steps": 9}], ids=str)
def test_a_run_is_measured_after_its_last_epoch(tmp_path: Path, limit: dict[str, int]) -> None:
    """Also a run that ends before its first validation, and a resumed one."""

    class Measured(Line):
        def on_validation_epoch_end(self):
            self.log("val/mask_mAP", 0.25 + self.current_epoch)

    def run(**limits: int) -> AutoTrainer:
        options = {"check_val_every_n_epoch": 5, "best_metric": "val/mask_mAP"}
        return quiet(tmp_path, enable_checkpointing=True, **options, **limits)

    first = run(**limit)
    assert first.check_val_every_n_epoch == 5
    first.fit(Measured(), loader(), loader(1))
    assert first.checkpoint_callback.best_model_score == 2.25
    again = run(max_epochs=8)  # validated after 5 epochs and after the last
    again.fit(Measured(), loader(), loader(1), ckpt_path="last")
    assert again.checkpoint_callback.best_model_score == 7.25
    best = [*tmp_path.glob("version_*/checkpoints/best.ckpt")]
    assert len(best) == 2 and all(one.exists() for one in best)


def test_a_run_without_validation_has_none_after_its_last_epoch(tmp_path: Path) -> None:
    class Never(Line):
        def on_validation_start(self) -> None:
            pytest.fail("validates")

    options = {"check_val_every_n_epoch": 5, "limit_val_batches": 0}
    quiet(tmp_path, max_epochs=2, **options).fit(Never(), loader(), loader(1))
