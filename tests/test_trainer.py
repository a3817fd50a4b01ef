"""AutoTrainer: what it takes from the launcher, what it refuses, what a run leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from torch.utils.data import DataLoader

from autotimm import AutoTrainer, InputError
from autotimm.training import callbacks, progress, trainer


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true", "foo"])
def test_precisions_that_the_losses_do_not_bear_are_refused(precision: str) -> None:
    with pytest.raises(InputError, match=f"precision='{precision}'.*16-mixed"):
        AutoTrainer(precision=precision)


def test_default_callbacks_give_way_to_those_of_the_user_and_their_kind() -> None:
    class Mine(callbacks.SavePictures):
        pass

    def kinds(given):
        made = trainer._default_callbacks(given, checkpoints=True, bar=True)
        return [type(c).__name__ for c in made]

    every = [
        *("CheckLoss", "ImagesPerSecond", "EpochLines", "SavePictures"),
        *("SaveResults", "ModelCheckpoint", "ProgressBar"),
    ]
    assert kinds([]) == every
    assert kinds([Mine()]) == [name for name in every if name != "SavePictures"]
    assert "ProgressBar" not in kinds([TQDMProgressBar()])


class Line(LightningModule):
    """Learns one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def training_step(self, batch, batch_idx):
        return (self.weight * batch["image"].mean()) ** 2

    def validation_step(self, batch, batch_idx):
        return [{}, {}]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def loader(batches: int = 3) -> DataLoader:
    one = {
        "image": torch.ones(2, 3, 4, 4),
        "file_name": ["a.jpg", "b.jpg"],
        "padding": torch.ones(2),
    }
    return DataLoader([one] * batches, batch_size=None)


def quiet(folder: Path, **options) -> AutoTrainer:
    return AutoTrainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def test_the_last_checkpoint_is_that_of_the_last_epoch(tmp_path: Path) -> None:
    """Also where the last epochs are not validated."""
    quiet(tmp_path, max_epochs=5, check_val_every_n_epoch=3).fit(Line(), loader(), loader(1))
    state = torch.load(tmp_path / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 15


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
    assert [line.partition(", loss")[0].partition(":")[0] for line in lines] == [
        "epoch 1 of 2",
        "epoch 2 of 2",
    ]
    assert all("loss 1" in line for line in lines)


def test_images_per_second_leaves_validation_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: clock[0])

    class Timed(Line):
        def training_step(self, batch, batch_idx):
            clock[0] += 1
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            clock[0] += 1000
            return super().validation_step(batch, batch_idx)

    run = quiet(tmp_path, max_epochs=1, val_check_interval=3)
    run.fit(Timed(), loader(6), loader(1))
    assert run.logged_metrics["train/images_per_second"] == pytest.approx(2.0)


def test_the_bar_asks_a_device_for_numbers_only_at_steps_that_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = RichProgressBar.get_metrics

    def count(self, run, model):
        asked.append(run.global_step)
        return ask(self, run, model)

    monkeypatch.setattr(RichProgressBar, "get_metrics", count)

    class Logging(Line):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss, prog_bar=True)
            return loss

    def steps_asked(folder: str) -> list[int]:
        asked.clear()
        run = AutoTrainer(
            accelerator="cpu",
            default_root_dir=tmp_path / folder,
            enable_model_summary=False,
            log_every_n_steps=4,
            max_epochs=1,
        )
        run.fit(Logging(), loader(10))
        assert isinstance(run.progress_bar_callback, progress.ProgressBar)
        return sorted(set(asked))

    assert steps_asked("cpu") == [*range(1, 11)]
    monkeypatch.setattr(progress, "_waits", lambda _: True)
    assert steps_asked("gpu") == [1, 4, 8, 10]  # the first, those logged, the end of the epoch
